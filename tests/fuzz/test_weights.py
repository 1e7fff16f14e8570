"""Weights with any bytes, header or config are either read or lead to a one-sentence error."""

import struct

import numpy as np
from fuzzing import JSON, TEXTS, dump, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from invnext_jax.evaluation import imported_encoders, pretrained
from invnext_jax.evaluation.text import text_encoder
from invnext_jax.weights import export, files, import_weights, pixel_stats

VALID = save({"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16)})


def read_all(path):
    return {name: tensor.read() for name, tensor in files.open_checkpoint(path).tensors.items()}


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4))
def test_safetensors_with_changed_bytes(folder, changes):
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    (folder / "a.safetensors").write_bytes(data)
    for values in (read_or_refuse(read_all, folder / "a.safetensors") or {}).values():
        assert values.dtype == np.float32


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "X"])
        | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
    },
)


@given(
    st.dictionaries(TEXTS, TENSOR | JSON, max_size=3), st.binary(max_size=64), st.integers(-9, 9)
)
def test_safetensors_header(folder, header, body, surplus):
    text = dump(header)
    length = max(0, len(text) + surplus)
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", length) + text + body)
    read_or_refuse(read_all, folder / "a.safetensors")


@given(JSON)
def test_index_of_shards(folder, content):
    source = folder / "shards"
    source.mkdir(exist_ok=True)
    (source / "model-1.safetensors").write_bytes(VALID)
    for weight_map in (content, {"a": content}):
        (source / files.INDEX_FILE).write_bytes(dump({"weight_map": weight_map}))
        read_or_refuse(files.open_checkpoint, source)


SIZES = [
    *("embed_dim", "depth", "num_heads", "patch_size", "img_size", "num_frames", "mlp_ratio"),
    *("cls_token_num", "attn_pool_num_heads", "clip_embed_dim", "tubelet_size"),
]
FIELDS = [
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "hidden_act", "mlp_ratio", "num_register_tokens"),
    *("vision_config", "rope_parameters", "layer_types", "local_attention", "use_swiglu_ffn"),
]
SMALL = st.sampled_from([0, 1, 2, 4, 8, 32, 64, 2.0, "4", True, None]) | JSON
FIELDS += ["crop_size", "frames_per_clip", "num_frames", "tubelet_size", "use_mean_pooling"]
FIELDS += ["layer_norm_eps", "vocab_size", "eos_token_id", "projection_dim", "projection_size"]
FIELDS += ["max_position_embeddings", "text_config", "text_config_dict", "image_mean", "image_std"]
TYPES = {
    "clip": ["clip_vision_model", "clip"],
    "siglip2": ["siglip_vision_model", "siglip"],
    "dinov2": ["dinov2", "dinov2_with_registers"],
    "modernbert": ["modernbert"],
}


def import_config(folder, kind, config):
    source = folder / kind
    source.mkdir(exist_ok=True)
    (source / files.SINGLE_FILE).write_bytes(VALID)
    (source / "config.json").write_bytes(dump(config))
    out = folder / "out.safetensors"
    read_or_refuse(import_weights.import_weights, kind, source, out)
    assert not out.exists()


@given(
    st.fixed_dictionaries({name: SMALL for name in SIZES[:6]}, optional={"mlp_ratio": SMALL}),
    st.dictionaries(st.sampled_from(SIZES[6:]), JSON, max_size=2),
    st.none() | JSON | st.fixed_dictionaries({"config": JSON, "parts": JSON}),
)
def test_config_of_a_published_encoder(folder, sizes, others, extra):
    config = {"model_config": sizes | others}
    config |= {} if extra is None else {"invnext_jax": extra}
    import_config(folder, "internvideo_next", config)


@given(st.sampled_from(list(TYPES)), st.data())
def test_config_of_a_teacher_or_text_model(folder, kind, data):
    config = data.draw(st.dictionaries(st.sampled_from(FIELDS), SMALL, max_size=6))
    config["model_type"] = data.draw(st.sampled_from(TYPES[kind]) | JSON)
    import_config(folder, kind, config)


def write_folder(folder, name, data, types):
    """Writes a folder with a random config of a model, and returns it."""
    source = folder / name
    source.mkdir(exist_ok=True)
    (source / files.SINGLE_FILE).write_bytes(VALID)
    config = data.draw(st.dictionaries(st.sampled_from(FIELDS), SMALL, max_size=6))
    config["model_type"] = data.draw(st.sampled_from(types) | JSON)
    for file in ("config.json", "preprocessor_config.json"):
        (source / file).write_bytes(dump(config))
    return source


@given(st.data())
def test_config_of_an_encoder_of_transformers(folder, data):
    types = list(imported_encoders.KIND_OF_MODEL_TYPE)
    assert (
        read_or_refuse(pretrained.load_frozen, write_folder(folder, "encoder", data, types)) is None
    )


@given(st.data())
def test_config_of_a_text_tower(folder, data):
    types = ["siglip", "siglip2", "siglip_text_model", "siglip2_text_model", "clip"]
    source = write_folder(folder, "text", data, [*types, "clip_text_model"])
    assert read_or_refuse(text_encoder.load_text_encoder, source) is None


@given(st.data())
def test_statistics_of_pixels(folder, data):
    source = write_folder(folder, "pixels", data, ["vjepa2"])
    found = read_or_refuse(pixel_stats.read_pixel_stats, source)
    assert found is None or all(0 <= x <= 1 for values in found.values() for x in values)


@given(
    JSON | st.fixed_dictionaries({"format": st.just(1)}, optional={"config": JSON, "source": JSON})
)
def test_description_of_an_export(folder, about):
    path = folder / "export.safetensors"
    path.write_bytes(VALID)
    path.with_suffix(".json").write_bytes(dump(about))
    read_or_refuse(export.open_export, path)
