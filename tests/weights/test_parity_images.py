"""Image teachers that are read from files of transformers equal the original models."""

import dataclasses
from types import SimpleNamespace

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from parity import numpy_of
from reference_models import Model, draw, unfold_names

from invnext_jax.models import patches, teachers
from invnext_jax.weights.files import LazyArrays, LazyTensor, open_checkpoint
from invnext_jax.weights.image_models import FAMILIES
from invnext_jax.weights.layout import pytorch_names, to_tree
from invnext_jax.weights.match import match_tree

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_MLP = {**TINY, "intermediate_size": 48}
IMAGE = {"image_size": 32, "patch_size": 8}
TEXT = {**TINY_MLP, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
# Published SigLIP 2 of fixed resolution: width, MLP, layers, heads, patch, image sizes.
SIGLIP2 = {
    "base": (768, 3072, 12, 12, 16, (224, 256, 384, 512)),
    "large": (1024, 4096, 24, 16, 16, (256, 384, 512)),
    "so400m14": (1152, 4304, 27, 16, 14, (224, 384)),
    "so400m16": (1152, 4304, 27, 16, 16, (256, 384, 512)),
    "giant-opt": (1536, 6144, 40, 16, 16, (256, 384)),
}
CLIP = {  # the same, and the activation
    "base32": (768, 3072, 12, 12, 32, (224,), "quick_gelu"),
    "base16": (768, 3072, 12, 12, 16, (224,), "quick_gelu"),
    "large14": (1024, 4096, 24, 16, 14, (224, 336), "quick_gelu"),
    "huge14": (1280, 5120, 32, 16, 14, (224,), "gelu"),
    "bigG14": (1664, 8192, 48, 16, 14, (224,), "gelu"),
}
DINOV2 = {  # width, layers, heads, gated
    "small": (384, 12, 6, False),
    "base": (768, 12, 12, False),
    "large": (1024, 24, 16, False),
    "giant": (1536, 40, 24, True),
}


def teacher_of(sizes):
    """Returns a teacher that taps every layer."""
    config = SimpleNamespace(**sizes, taps=sizes["depth"], tap_interval=1.0)
    return teachers.from_config(SimpleNamespace(teacher=config, dtype="float32"))


def leaf_shapes(model, size):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return nn.unbox(variables["params"])


def read(kind, folder):
    """Returns a teacher and its parameters from a folder."""
    family, checkpoint = FAMILIES[kind], open_checkpoint(folder)
    sizes = family.sizes(checkpoint.config)
    model = teacher_of(sizes)
    tree = to_tree(LazyArrays(family.adapt(checkpoint.tensors)), family.rules)
    return model, match_tree(tree, leaf_shapes(model, sizes["train_size"]), str(folder))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def torch_outputs(hf, tower, images_bhwc, prefix, **options):
    """Returns the input of every layer, the pooled feature and the attention of a torch model.

    `prefix` is the number of tokens before the patches.
    """
    pixels = hf.torch.from_numpy(np.moveaxis(images_bhwc, -1, 1).copy())
    out = tower(pixels, output_hidden_states=True, output_attentions=True, **options)
    if hasattr(tower, "head"):  # SigLIP
        x, probe = out.last_hidden_state, tower.head.probe.repeat(len(pixels), 1, 1)
        attention = numpy_of(tower.head.attention(probe, x, x, need_weights=True)[1])[:, 0]
    else:
        attention = numpy_of(out.attentions[-1]).mean(axis=1)[:, 0, prefix:]
        attention /= attention.sum(axis=1, keepdims=True)
    taps = np.stack([numpy_of(state)[:, prefix:] for state in out.hidden_states[:-1]])
    return {"taps": taps, "pooled": numpy_of(out.pooler_output), "attention": attention}


def assert_parity(reference, kind, folder, model, side, prefix, tower=None, count=2, **options):
    """Compares `count` images of size `side` with a model, or with the attribute `tower` of it."""
    images = draw((count, side, side, 3), 1)

    def compute(hf):
        loaded = model.load(hf, folder)
        loaded = getattr(loaded, tower) if tower else loaded
        return torch_outputs(hf, loaded, images, prefix, **options)

    teacher, params = read(kind, folder)
    output, expected = jax.jit(teacher.apply)({"params": params}, images), reference(compute)
    assert_near(output.taps_lbnd, unit(expected["taps"]))
    assert_near(output.pooled_bd, unit(expected["pooled"]))
    assert_near(output.attention_bn, expected["attention"])
    # The map is not uniform.
    assert expected["attention"].std() > 0.01 * expected["attention"].mean()


def dinov2(registers=False, **sizes):
    return Model("Dinov2WithRegistersModel" if registers else "Dinov2Model", sizes)


def tiny(kind):
    if kind == "dinov2":
        return dinov2(**TINY, **IMAGE, use_swiglu_ffn=True)
    name = {"siglip2": "SiglipVisionModel", "clip": "CLIPVisionModel"}[kind]
    return Model(name, {**TINY_MLP, **IMAGE})


# Only so400m14 is not marked slow: its width, MLP and image size are unusual. The others differ
# only in shapes, which test_siglip2_of_published_sizes_has_the_shapes_of_the_teacher compares.
@pytest.mark.parametrize(
    "name",
    [n if n == "so400m14" else pytest.param(n, marks=pytest.mark.slow) for n in SIGLIP2],
)
def test_siglip2_of_published_widths(reference, references, name, tmp_path):
    width, mlp, _, heads, patch, _ = SIGLIP2[name]
    side = 2 * patch + patch // 2  # not a multiple of the patch, as 384 px with patches of 14
    sizes = {
        **{"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": 2},
        **{"num_attention_heads": heads, "patch_size": patch, "image_size": side},
    }
    model = Model("SiglipVisionModel", sizes)
    folder = references.save(model, tmp_path)
    assert_parity(reference, "siglip2", folder, model, side, 0, count=1)


@pytest.mark.parametrize("side", [32, 48, 24])
def test_siglip2_in_full_model_at_other_image_sizes(reference, references, side, tmp_path):
    vision = {**TINY_MLP, **IMAGE}
    model = Model("SiglipModel", {"text_config": TEXT, "vision_config": vision})
    options = {"tower": "vision_model", "interpolate_pos_encoding": True}
    folder = references.save(model, tmp_path)
    assert_parity(reference, "siglip2", folder, model, side, 0, **options)


@pytest.mark.parametrize(
    ("side", "activation"), [(32, "quick_gelu"), (48, "quick_gelu"), (24, "gelu")]
)
def test_clip_tower_at_several_image_sizes(reference, references, activation, side, tmp_path):
    model = Model("CLIPVisionModel", {**TINY_MLP, **IMAGE, "hidden_act": activation})
    folder = references.save(model, tmp_path)
    assert_parity(reference, "clip", folder, model, side, 1, interpolate_pos_encoding=True)


def test_clip_in_full_model(reference, references, tmp_path):
    vision = {**TINY_MLP, "image_size": 36, "patch_size": 8}
    model = Model("CLIPModel", {"text_config": TEXT, "vision_config": vision})
    folder = references.save(model, tmp_path)
    assert_parity(reference, "clip", folder, model, 36, 1, tower="vision_model")


@pytest.mark.parametrize(
    ("side", "registers", "gated"),
    [
        *((32, 0, False), (32, 0, True), (32, 4, True)),
        *((48, 0, True), (48, 4, False), (24, 0, False), (24, 4, True)),
    ],
)
def test_dinov2_at_several_image_sizes(reference, references, gated, registers, side, tmp_path):
    model = dinov2(registers=registers > 0, **TINY, **IMAGE, use_swiglu_ffn=gated)
    folder = references.save(model, tmp_path)
    assert_parity(reference, "dinov2", folder, model, side, 1 + registers)


def test_dinov2_in_classification_model(reference, references, tmp_path):
    model = Model("Dinov2ForImageClassification", {**TINY, **IMAGE})
    folder = references.save(model, tmp_path)
    assert_parity(reference, "dinov2", folder, model, 32, 1, tower="dinov2")


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_small_activations_expose_the_epsilon_of_every_norm(reference, references, kind, tmp_path):
    small = ("embeddings", "pre_layrnorm", "out_proj", "output.dense", "fc2", "weights_out")
    # The variance of the stream approaches epsilon.
    model = dataclasses.replace(tiny(kind), small=small, factor=3e-3)
    prefix = 0 if kind == "siglip2" else 1
    assert_parity(reference, kind, references.save(model, tmp_path), model, 32, prefix)


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_float16_and_shards_read_as_the_same_values(references, kind, tmp_path):
    def read_as(name, *dtypes, **options):
        return read(kind, references.save(tiny(kind), tmp_path / name, dtypes, **options))[1]

    full = read_as("full", "float16", "float32")
    for other in (read_as("half", "float16"), read_as("shards", "float16", shard_bytes=20_000)):
        jax.tree.map(np.testing.assert_array_equal, other, full)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2


def assert_same_shapes(reference, kind, model, name=""):
    """Compares names and shapes of a published model with those that the teacher expects."""
    about = reference(model.describe_modules, name)
    family = FAMILIES[kind]
    sizes = family.sizes(about["config"])
    shapes = flax.traverse_util.flatten_dict(
        leaf_shapes(teacher_of(sizes), sizes["train_size"]), sep="/"
    )
    expected = {}
    for name, leaf in pytorch_names({path: x.shape for path, x in shapes.items()}, family.rules):
        shape = shapes[leaf.path].shape[(leaf.layer is not None) :]
        array = jax.ShapeDtypeStruct(shape, np.float32)
        expected[name] = jax.eval_shape(leaf.layout.to_pytorch, array).shape
    found = unfold_names(about["tensors"])
    found = family.adapt({name: LazyTensor(shape, None) for name, shape in found.items()})
    assert {name: tensor.shape for name, tensor in found.items()} == expected


@pytest.mark.parametrize(
    ("name", "side"), [(name, side) for name, sizes in SIGLIP2.items() for side in sizes[-1]]
)
def test_siglip2_of_published_sizes_has_the_shapes_of_the_teacher(reference, name, side):
    width, mlp, depth, heads, patch, _ = SIGLIP2[name]
    sizes = {
        **{"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": depth},
        **{"num_attention_heads": heads, "patch_size": patch, "image_size": side},
    }
    assert_same_shapes(reference, "siglip2", Model("SiglipVisionModel", sizes))


@pytest.mark.parametrize(
    ("name", "side"), [(name, side) for name, sizes in CLIP.items() for side in sizes[-2]]
)
def test_clip_of_published_sizes_has_the_shapes_of_the_teacher(reference, name, side):
    width, mlp, depth, heads, patch, _, activation = CLIP[name]
    sizes = {
        **{"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": depth},
        **{"num_attention_heads": heads, "patch_size": patch, "image_size": side},
        "hidden_act": activation,
    }
    assert_same_shapes(reference, "clip", Model("CLIPVisionModel", sizes))


@pytest.mark.parametrize("name", DINOV2)
@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_of_published_sizes_has_the_shapes_of_the_teacher(reference, name, registers):
    width, depth, heads, gated = DINOV2[name]
    sizes = {
        **{"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads},
        **{"patch_size": 14, "image_size": 518, "use_swiglu_ffn": gated},
    }
    assert_same_shapes(reference, "dinov2", dinov2(registers, **sizes))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("siglip2", "SiglipVision"), ("clip", "CLIPVision")),
        *(("dinov2", "Dinov2"), ("dinov2", "Dinov2WithRegisters")),
    ],
)
def test_missing_sizes_get_the_defaults_of_transformers(reference, kind, name):
    config = reference(lambda hf: getattr(hf.models, f"{name}Config")().to_dict())
    short = {"model_type": config["model_type"]}
    assert FAMILIES[kind].sizes(short) == FAMILIES[kind].sizes(config)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("siglip2", "IMAGENET_STANDARD"), ("clip", "OPENAI_CLIP"), ("dinov2", "IMAGENET_DEFAULT")],
)
def test_pixels_are_normalised_as_in_each_family(reference, kind, name):
    known = [f"{name}_MEAN", f"{name}_STD"]
    mean, std = reference(lambda hf: [list(getattr(hf.models.image_utils, x)) for x in known])
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 8, 3), dtype=np.uint8)
    images = teachers.preprocess(patches.normalize(jnp.asarray(video)), 8, kind)
    assert_near(images, (video[0] / 255 - np.array(mean)) / np.array(std), 1e-5)
