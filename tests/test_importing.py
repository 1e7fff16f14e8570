"""Importing other projects' weights: what is refused, and that every misfit is named at once."""

import json

import numpy as np
import pytest
from golden_cases import DEFAULT, assert_near, read_cases
from safetensors import numpy as st

from invnext_jax import importing
from invnext_jax.errors import UserError
from invnext_jax.evaluation import features
from invnext_jax.models.heads import AttentionPool


@pytest.fixture
def case():
    return read_cases(DEFAULT)["encoder_B"]


@pytest.fixture
def published(case, tmp_path):
    """The golden encoder as it would be published: float32 here, names and config as released."""
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
    said = importing.import_weights("internvideo_next", published, out)
    assert f"--config.init_from={out}" in said
    for source in (out, published):
        loaded = features.load_encoder(source)
        tokens = loaded.encoder.apply({"params": loaded.params}, case.video).tokens_bnd
        assert_near(tokens, case["out.nomask.x"])
        e = loaded.config.encoder
        pool = AttentionPool(e.pool_width, e.pool_heads, "float32")
        pooled = pool.apply({"params": loaded.pool}, tokens)
        assert_near(pooled, case["out.nomask.clip_projector"])


def test_every_misfit_stands_in_one_table(published, tmp_path):
    path = published / "model.safetensors"
    state = st.load_file(path)
    del state["model.cls_token"]
    state["model.blocks.0.mlp.fc1.weight"] = np.zeros((3, 4), np.float32)
    state["model.blocks.7.mlp.fc1.weight"] = np.zeros((3, 4), np.float32)
    state["model.head.weight"] = np.zeros(3, np.float32)
    st.save_file(state, path)
    with pytest.raises(UserError) as error:
        importing.import_weights("internvideo_next", published, tmp_path / "a.safetensors")
    text = str(error.value)
    assert "missing  cls_token: found None, wanted (1, 4, 32)" in text
    assert "shape    blocks.0.mlp.fc1.weight: found (3, 4), wanted (128, 32)" in text
    assert "surplus  blocks.7.mlp.fc1.weight: found (3, 4), wanted None" in text
    assert "surplus  head.weight" in text
    assert not (tmp_path / "a.safetensors").exists()


def test_what_is_no_such_model_is_told(published, tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="--kind=vit is none of siglip2"):
        importing.import_weights("vit", published, out)
    config = json.loads((published / "config.json").read_text())
    config["model_config"]["tubelet_size"] = 2
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tubelet_size=2; only 1 is built"):
        importing.import_weights("internvideo_next", published, out)
    (published / "config.json").write_text('{"model_type": "bert", "hidden_size": 3}')
    with pytest.raises(UserError, match=r"lacks embed_dim, depth, num_heads"):
        importing.import_weights("internvideo_next", published, out)
    (published / "config.json").unlink()
    with pytest.raises(UserError, match=r"there is no config.json beside"):
        importing.import_weights("internvideo_next", published, out)


def test_files_that_exist_stay_unless_told(published, tmp_path):
    out = tmp_path / "a.safetensors"
    importing.import_weights("internvideo_next", published, out)
    with pytest.raises(UserError, match="--overwrite"):
        importing.import_weights("internvideo_next", published, out)
    importing.import_weights("internvideo_next", published, out, overwrite=True)
