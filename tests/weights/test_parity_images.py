"""Image teachers that are read from files of transformers equal the original models."""

from types import SimpleNamespace

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from parity import import_transformers, numpy_of, randomise, save

from invnext_jax.models import patches, teachers
from invnext_jax.weights.files import LazyArrays, LazyTensor, open_checkpoint
from invnext_jax.weights.image_models import FAMILIES
from invnext_jax.weights.layout import pytorch_names, to_tree
from invnext_jax.weights.match import match_tree

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_MLP = {**TINY, "intermediate_size": 48}
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


@pytest.fixture(scope="module")
def hf():
    torch, transformers = import_transformers()
    return SimpleNamespace(torch=torch, models=transformers)


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


def assert_parity(hf, kind, folder, tower, side, prefix, **options):
    """Compares every tapped layer, the pooled feature and the attention of a torch model.

    `prefix` is the number of tokens before the patches; `side` is the size of the images.
    """
    images = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    model, params = read(kind, folder)
    output = jax.jit(model.apply)({"params": params}, images)
    with hf.torch.no_grad():
        pixel_values = hf.torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        expected = tower(pixel_values, output_hidden_states=True, output_attentions=True, **options)
        if kind == "siglip2":
            x, probe = expected.last_hidden_state, tower.head.probe.repeat(len(images), 1, 1)
            attention = numpy_of(tower.head.attention(probe, x, x, need_weights=True)[1])[:, 0]
        else:
            attention = numpy_of(expected.attentions[-1]).mean(axis=1)[:, 0, prefix:]
            attention /= attention.sum(axis=1, keepdims=True)
    taps = np.stack([numpy_of(state)[:, prefix:] for state in expected.hidden_states[:-1]])
    assert_near(output.taps_lbnd, unit(taps))
    assert_near(output.pooled_bd, unit(numpy_of(expected.pooler_output)))
    assert_near(output.attention_bn, attention)
    assert attention.std() > 0.01 * attention.mean()  # the map is not uniform


def make_siglip2(hf, **sizes):
    config = hf.models.SiglipVisionConfig(**sizes, attn_implementation="eager")
    return randomise(hf.torch, hf.models.SiglipVisionModel(config))


def make_clip(hf, **sizes):
    config = hf.models.CLIPVisionConfig(**sizes, attn_implementation="eager")
    return randomise(hf.torch, hf.models.CLIPVisionModel(config))


def make_dinov2(hf, registers=False, **sizes):
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(hf.models, f"{name}Config")(**sizes, attn_implementation="eager")
    return randomise(hf.torch, getattr(hf.models, f"{name}Model")(config))


def make_tiny(hf, kind):
    image = {"image_size": 32, "patch_size": 8}
    if kind == "dinov2":
        return make_dinov2(hf, **TINY, **image, use_swiglu_ffn=True)
    return {"siglip2": make_siglip2, "clip": make_clip}[kind](hf, **TINY_MLP, **image)


# Only so400m14 is not marked slow: its width, MLP and image size are unusual. The others differ
# only in shapes, which test_siglip2_of_published_sizes_has_the_shapes_of_the_teacher compares.
@pytest.mark.parametrize(
    "name",
    [n if n == "so400m14" else pytest.param(n, marks=pytest.mark.slow) for n in SIGLIP2],
)
def test_siglip2_of_published_widths(hf, name, tmp_path):
    width, mlp, _, heads, patch, _ = SIGLIP2[name]
    side = 4 * patch + patch // 2  # not a multiple of the patch, as 384 px with patches of 14
    tower = make_siglip2(
        hf,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=2,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=side,
    )
    assert_parity(hf, "siglip2", save(tower, tmp_path), tower, side, 0)


@pytest.mark.parametrize("side", [32, 48, 24])
def test_siglip2_in_full_model_at_other_image_sizes(hf, side, tmp_path):
    vision = {**TINY_MLP, "image_size": 32, "patch_size": 8}
    config = hf.models.SiglipConfig(text_config=TEXT, vision_config=vision)
    model = hf.models.SiglipModel._from_config(config, attn_implementation="eager")
    randomise(hf.torch, model)
    folder = save(model, tmp_path)
    assert_parity(hf, "siglip2", folder, model.vision_model, side, 0, interpolate_pos_encoding=True)


@pytest.mark.parametrize(
    ("side", "activation"), [(32, "quick_gelu"), (48, "quick_gelu"), (24, "gelu")]
)
def test_clip_tower_at_several_image_sizes(hf, activation, side, tmp_path):
    tower = make_clip(hf, **TINY_MLP, image_size=32, patch_size=8, hidden_act=activation)
    folder = save(tower, tmp_path)
    assert_parity(hf, "clip", folder, tower, side, 1, interpolate_pos_encoding=True)


def test_clip_in_full_model(hf, tmp_path):
    vision = {**TINY_MLP, "image_size": 36, "patch_size": 8}
    config = hf.models.CLIPConfig(text_config=TEXT, vision_config=vision)
    model = hf.models.CLIPModel._from_config(config, attn_implementation="eager")
    randomise(hf.torch, model)
    assert_parity(hf, "clip", save(model, tmp_path), model.vision_model, 36, 1)


@pytest.mark.parametrize(
    ("side", "registers", "gated"),
    [
        *((32, 0, False), (32, 0, True), (32, 4, True)),
        *((48, 0, True), (48, 4, False), (24, 0, False), (24, 4, True)),
    ],
)
def test_dinov2_at_several_image_sizes(hf, gated, registers, side, tmp_path):
    sizes = {**TINY, "image_size": 32, "patch_size": 8, "use_swiglu_ffn": gated}
    tower = make_dinov2(hf, registers=registers > 0, **sizes)
    assert_parity(hf, "dinov2", save(tower, tmp_path), tower, side, 1 + registers)


def test_dinov2_in_classification_model(hf, tmp_path):
    config = hf.models.Dinov2Config(**TINY, image_size=32, patch_size=8)
    model = hf.models.Dinov2ForImageClassification._from_config(config, attn_implementation="eager")
    randomise(hf.torch, model)
    assert_parity(hf, "dinov2", save(model, tmp_path), model.dinov2, 32, 1)


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_small_activations_expose_the_epsilon_of_every_norm(hf, kind, tmp_path):
    model = make_tiny(hf, kind)
    scaled = ("embeddings", "pre_layrnorm", "out_proj", "o_proj", "fc2", "down_proj")
    with hf.torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in scaled):
                parameter.mul_(3e-3)  # the variance of the stream approaches epsilon
    prefix = 0 if kind == "siglip2" else 1
    assert_parity(hf, kind, save(model, tmp_path), model, 32, prefix)


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_float16_and_shards_read_as_the_same_values(hf, kind, tmp_path):
    model = make_tiny(hf, kind).half()
    half = read(kind, save(model, tmp_path / "half"))[1]
    shards = read(kind, save(model, tmp_path / "shards", max_shard_size="20KB"))[1]
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    full = read(kind, save(model.float(), tmp_path / "full"))[1]
    for other in (half, shards):
        jax.tree.map(np.testing.assert_array_equal, other, full)


def assert_same_shapes(hf, kind, config, make):
    """Compares names and shapes of a published model with those that the teacher expects."""
    with hf.torch.device("meta"):
        state = make(config).state_dict()
    family = FAMILIES[kind]
    sizes = family.sizes(config.to_dict())
    shapes = flax.traverse_util.flatten_dict(
        leaf_shapes(teacher_of(sizes), sizes["train_size"]), sep="/"
    )
    expected = {}
    for name, leaf in pytorch_names({path: x.shape for path, x in shapes.items()}, family.rules):
        shape = shapes[leaf.path].shape[(leaf.layer is not None) :]
        array = jax.ShapeDtypeStruct(shape, np.float32)
        expected[name] = jax.eval_shape(leaf.layout.to_pytorch, array).shape
    found = family.adapt({name: LazyTensor(tuple(x.shape), None) for name, x in state.items()})
    assert {name: tensor.shape for name, tensor in found.items()} == expected


@pytest.mark.parametrize("name", SIGLIP2)
def test_siglip2_of_published_sizes_has_the_shapes_of_the_teacher(hf, name):
    width, mlp, depth, heads, patch, sides = SIGLIP2[name]
    for side in sides:
        config = hf.models.SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=side,
        )
        assert_same_shapes(hf, "siglip2", config, hf.models.SiglipVisionModel)


@pytest.mark.parametrize("name", CLIP)
def test_clip_of_published_sizes_has_the_shapes_of_the_teacher(hf, name):
    width, mlp, depth, heads, patch, sides, activation = CLIP[name]
    for side in sides:
        config = hf.models.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=side,
            hidden_act=activation,
        )
        assert_same_shapes(hf, "clip", config, hf.models.CLIPVisionModel)


@pytest.mark.parametrize("name", DINOV2)
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_of_published_sizes_has_the_shapes_of_the_teacher(hf, name, family):
    width, depth, heads, gated = DINOV2[name]
    config = getattr(hf.models, f"{family}Config")(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=14,
        image_size=518,
        use_swiglu_ffn=gated,
    )
    assert_same_shapes(hf, "dinov2", config, getattr(hf.models, f"{family}Model"))


def test_missing_sizes_get_the_defaults_of_transformers(hf):
    for kind, name in (
        ("siglip2", "SiglipVision"),
        ("clip", "CLIPVision"),
        ("dinov2", "Dinov2"),
        ("dinov2", "Dinov2WithRegisters"),
    ):
        config = getattr(hf.models, f"{name}Config")()
        short = {"model_type": config.model_type}
        assert FAMILIES[kind].sizes(short) == FAMILIES[kind].sizes(config.to_dict())


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_pixels_are_normalised_as_in_each_family(hf, kind):
    known = hf.models.image_utils
    name = {"siglip2": "IMAGENET_STANDARD", "clip": "OPENAI_CLIP", "dinov2": "IMAGENET_DEFAULT"}
    mean, std = (np.array(getattr(known, f"{name[kind]}_{x}")) for x in ("MEAN", "STD"))
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 8, 3), dtype=np.uint8)
    images = teachers.preprocess(patches.normalize(jnp.asarray(video)), 8, kind)
    assert_near(images, (video[0] / 255 - mean) / std, 1e-5)
