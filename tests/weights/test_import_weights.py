"""Importing weights of other projects: use in a run, and errors that list all mismatches."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from golden_cases import DEFAULT, assert_near, read_cases
from reference_models import Model
from safetensors import numpy as st

from configs import stage1 as config1
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.models.heads import AttentionPool
from invnext_jax.stages import image_teacher, initialization
from invnext_jax.weights import export, import_weights

ROOT = Path(__file__).parents[2]
SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"image_size": 32, "patch_size": 8},
}


@pytest.fixture
def case():
    return read_cases(DEFAULT)["encoder_B"]


@pytest.fixture
def published(case, tmp_path):
    """The golden encoder in the published format, in float32."""
    folder = tmp_path / "published"
    folder.mkdir()
    state = case.under("param.")
    names = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "clip_projector.")
    state = {
        f"model.{name.replace('.gamma', '.lr_scale')}": value
        for name, value in state.items()
        if name.startswith(names)
    }
    st.save_file(state, folder / "model.safetensors")
    model = case.config["model"]
    fields = ("embed_dim", "depth", "num_heads", "img_size", "patch_size", "num_frames")
    fields += ("attn_pool_num_heads", "clip_embed_dim")
    sizes = {**{name: model[name] for name in fields}, "mlp_ratio": 4, "tubelet_size": 1}
    config = {"model_type": "InternVideoNext_Base", "model_config": sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_published_encoder_gives_the_reference_features(published, case, tmp_path):
    out = tmp_path / "encoder.safetensors"
    message = import_weights.import_weights("internvideo_next", published, out)
    assert f"--config.init_from={out}" in message
    for source in (out, published):
        loaded = pretrained.load_encoder(source)
        tokens = loaded.encoder.apply({"params": loaded.params}, case.video).tokens_bnd
        assert_near(tokens, case["out.nomask.x"])
        e = loaded.config.encoder
        pool = AttentionPool(e.pool_width, e.pool_heads, "float32")
        pooled = pool.apply({"params": loaded.pool}, tokens)
        assert_near(pooled, case["out.nomask.clip_projector"])


def test_error_lists_all_mismatches(published, tmp_path):
    path = published / "model.safetensors"
    state = st.load_file(path)
    del state["model.cls_token"]
    state["model.blocks.0.mlp.fc1.weight"] = np.zeros((3, 4), np.float32)
    state["model.blocks.7.mlp.fc1.weight"] = np.zeros((3, 4), np.float32)
    state["model.head.weight"] = np.zeros(3, np.float32)
    st.save_file(state, path)
    with pytest.raises(UserError) as error:
        import_weights.import_weights("internvideo_next", published, tmp_path / "a.safetensors")
    text = str(error.value)
    assert "missing  cls_token: found None, expected (1, 4, 32)" in text
    assert "shape    blocks.0.mlp.fc1.weight: found (3, 4), expected (128, 32)" in text
    assert "surplus  blocks.7.mlp.fc1.weight: found (3, 4), expected None" in text
    assert "surplus  head.weight" in text
    assert not (tmp_path / "a.safetensors").exists()


def test_invalid_kinds_and_configs_are_errors(published, tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="--kind=vit must be one of siglip2"):
        import_weights.import_weights("vit", published, out)
    config = json.loads((published / "config.json").read_text())
    config["model_config"]["tubelet_size"] = 2
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tubelet_size=2, but only 1 is supported"):
        import_weights.import_weights("internvideo_next", published, out)
    (published / "config.json").write_text('{"model_type": "bert", "hidden_size": 3}')
    with pytest.raises(UserError, match=r"model_type='bert', which is not an InternVideo-Next"):
        import_weights.import_weights("internvideo_next", published, out)
    (published / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(UserError, match=r"lacks embed_dim, depth, num_heads"):
        import_weights.import_weights("internvideo_next", published, out)
    (published / "config.json").unlink()
    with pytest.raises(UserError, match=r"there is no config.json next to"):
        import_weights.import_weights("internvideo_next", published, out)


def test_existing_files_are_kept_without_overwrite(published, tmp_path):
    out = tmp_path / "a.safetensors"
    import_weights.import_weights("internvideo_next", published, out)
    with pytest.raises(UserError, match="--overwrite"):
        import_weights.import_weights("internvideo_next", published, out)
    import_weights.import_weights("internvideo_next", published, out, overwrite=True)


@pytest.fixture(scope="module")
def folders(references, tmp_path_factory):
    """Tiny models of each kind with random weights, in the format of transformers."""
    sizes = {**SIZES, "intermediate_size": 48}
    text = {**sizes, "vocab_size": 20, "num_hidden_layers": 6, "pad_token_id": 0}
    models = {
        "siglip2": Model("SiglipVisionModel", sizes),
        "clip": Model("CLIPVisionModel", sizes),
        "dinov2": Model("Dinov2Model", {**SIZES, "mlp_ratio": 2}),
        "modernbert": Model("ModernBertModel", text),
    }
    root = tmp_path_factory.mktemp("hf")
    return {
        kind: references.save(model, root / kind, shard_bytes=20_000)
        for kind, model in models.items()
    }


@pytest.mark.parametrize("kind", ["siglip2", "clip", "dinov2"])
def test_printed_flags_configure_the_imported_teacher(kind, folders, tmp_path):
    out = tmp_path / "teacher.safetensors"
    message = import_weights.import_weights(kind, folders[kind], out)
    config = config1.get_config("tiny")
    for flag in message.splitlines()[1].removeprefix("To use it: ").split():
        field, value = flag.removeprefix("--config.").split("=")
        old = dict(config.teacher)[field.partition(".")[2]]
        value = value == "True" if isinstance(old, bool) else type(old)(value)
        config.update_from_flattened_dict({field: value})
    config.teacher.size = 32
    image_teacher.check_teacher(config)
    params = image_teacher.read_teacher(config)
    video = np.random.default_rng(0).standard_normal((1, 2, 32, 32, 3)).astype("f4")
    seen = image_teacher.apply_to_frames(ml_collections.FrozenConfigDict(config), params, video)
    assert seen.taps_lbnd.shape == (3, 2, 16, 32)
    np.testing.assert_allclose(seen.attention_bn.sum(axis=1), 1.0, rtol=1e-5)
    config.teacher.heads = 2
    with pytest.raises(UserError, match=r"config.teacher.heads=2 must be 4"):
        image_teacher.read_teacher(config)


@pytest.mark.parametrize(
    ("depth", "flags"),
    [
        (24, "--config.teacher.taps=6 --config.teacher.tap_interval=2.0"),
        (40, "depth=40"),
        (5, "1.0"),
    ],
)
def test_printed_taps_cover_the_same_fraction_of_any_depth(depth, flags):
    weights = import_weights.ImportedWeights({}, {"teacher": {"depth": depth}})
    assert import_weights._usage("clip", Path("a"), weights).endswith(flags)


def test_published_encoder_with_other_pixel_statistics_is_refused(published, tmp_path):
    stats = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (published / "preprocessor_config.json").write_text(json.dumps(stats))
    with pytest.raises(UserError, match="image_mean=.* but the pixels for InternVideo-Next are"):
        import_weights.import_weights("internvideo_next", published, tmp_path / "a.safetensors")


def test_imported_text_model_initialises_the_predictor(folders, tmp_path):
    out = tmp_path / "text.safetensors"
    import_weights.import_weights("modernbert", folders["modernbert"], out, last_layers=2)
    assert sorted(export.open_export(out)[0]["text"]) == ["layer4", "layer5"]
    config = config1.get_config("tiny")
    config.predictor.update(
        weights=str(out), width=32, heads=4, mlp_width=48, window=128, last_layer=5, depth=2
    )
    layers = initialization.text_layers(config)
    state = {}
    for path in folders["modernbert"].glob("*.safetensors"):
        state |= st.load_file(path)
    wo = next(v for k, v in state.items() if k.endswith("layers.4.attn.Wo.weight"))
    np.testing.assert_array_equal(layers["predictor/layer0"]["proj"]["kernel"], wo.T)
    assert len(jax.tree.leaves(layers)) == 2 * 6


def test_file_of_another_model_is_refused(folders, tmp_path):
    for kind, other in (("siglip2", "clip"), ("dinov2", "modernbert"), ("modernbert", "siglip2")):
        with pytest.raises(UserError, match=r"model_type"):
            import_weights.import_weights(kind, folders[other], tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is not an InternVideo-Next encoder"):
        import_weights.import_weights(
            "internvideo_next", folders["clip"], tmp_path / "a.safetensors"
        )


def test_command_prints_a_one_line_error(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    command = [sys.executable, "launch/import_weights.py", "--kind=clip"]
    command += [f"--source={tmp_path / 'model.pth'}", f"--out={tmp_path / 'a.safetensors'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "is a pickle" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": "wide"},
        {"num_heads": 0},
        {"depth": -1},
        {"patch_size": 0},
        {"img_size": None},
        {"mlp_ratio": [4]},
    ],
)
def test_invalid_sizes_are_errors(change, published, tmp_path):
    config = json.loads((published / "config.json").read_text())
    config["model_config"] |= change
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        import_weights.import_weights("internvideo_next", published, tmp_path / "a.safetensors")


def test_nonfinite_weights_are_refused(published, tmp_path):
    state = st.load_file(published / "model.safetensors")
    state["model.cls_token"][0, 0, 0] = np.inf
    st.save_file(state, published / "model.safetensors")
    with pytest.raises(UserError, match="not finite in encoder/class_token"):
        import_weights.import_weights("internvideo_next", published, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("patch_embed.proj.weight", {"architecture": "vit_giantopt_patch16_siglip_256"}),
        ("visual.trunk.patch_embed.proj.weight", {}),
        ("visual.conv1.weight", None),
        ("x", {"model_cfg": {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}}),
    ],
)
@pytest.mark.parametrize("kind", ["siglip2", "clip", "dinov2"])
def test_layouts_of_timm_and_openclip_are_named(tmp_path, kind, name, config):
    st.save_file({name: np.zeros((8, 3, 16, 16), np.float32)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"of timm, OpenCLIP .* layout of transformers.*/") as error:
        import_weights.import_weights(kind, tmp_path, tmp_path / "out.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_names_of_wrapped_models_are_read(published, tmp_path, prefix):
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    import_weights.import_weights("internvideo_next", published, plain)
    state = st.load_file(published / "model.safetensors")
    st.save_file({prefix + k: v for k, v in state.items()}, published / "model.safetensors")
    import_weights.import_weights("internvideo_next", published, wrapped)
    assert wrapped.read_bytes() == plain.read_bytes()
