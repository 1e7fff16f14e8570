"""Import of weights: image teachers, text towers, ModernBERT layers, published video encoders.

All names and shapes are compared with those of the model before any tensor is read. The error
message lists all mismatches.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from invnext_jax.errors import UserError
from invnext_jax.models import encoder, teachers, tubelet_encoder
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.patches import IMAGENET_MEAN, IMAGENET_STD
from invnext_jax.models.predictor import ModernBertLayer
from invnext_jax.models.text_tower import TextTower
from invnext_jax.stages import registry
from invnext_jax.weights import (
    image_models,
    match,
    pixel_stats,
    published,
    reference,
    text_models,
    text_towers,
    video_models,
)
from invnext_jax.weights.export import description_path, find_nonfinite, write_export
from invnext_jax.weights.files import Checkpoint, open_checkpoint
from invnext_jax.weights.model_sizes import check_sizes

_BUILD_ERRORS = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, flax.errors.FlaxError),
)
_TAPS, _DEFAULT_DEPTH = 6, 40  # `teacher.taps` and `teacher.depth` of the default config
KINDS = (*image_models.FAMILIES, "modernbert", "internvideo_next")


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """The contents of an export.

    Attributes:
      params: parameter tree with an entry for each part of the model.
      config: config that the modules are built from.
    """

    params: dict[str, Any]
    config: dict[str, Any]


def import_weights(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    last_layers: int = 8,
    overwrite: bool = False,
) -> str:
    """Converts a checkpoint from another project to the export format of this package.

    Args:
      kind: one of `KINDS`.
      source: a .safetensors file, or a folder with config.json and one or more such files.
      out: the .safetensors file to write; a .json file with the same name is written next to it.
      last_layers: for a text model, how many of the last layers to keep.
      overwrite: whether existing files may be replaced.

    Returns:
      A summary of the written files, and the flags for using them.

    Raises:
      UserError: the kind is unknown, the source is not a model of this kind, or `out` exists.
    """
    if kind not in KINDS:
        raise UserError(f"--kind={kind} must be one of {', '.join(KINDS)}")
    out, json_path = Path(out), description_path(out)
    if not overwrite and (os.path.exists(out) or os.path.exists(json_path)):
        raise UserError(f"{out} or its .json file exists: change --out or add --overwrite")
    if os.path.isdir(out):
        raise UserError(f"--out={out} is a folder: specify a .safetensors file")
    checkpoint = open_checkpoint(source)
    if kind in image_models.FAMILIES:
        imported = read_teacher(kind, checkpoint, source)
    elif kind == "modernbert":
        imported = read_text(checkpoint, source, last_layers)
    else:
        imported = read_video(checkpoint, source)
    if name := find_nonfinite(imported.params):
        raise UserError(f"{source} has weights that are not finite in {name}: use a different copy")
    about = {"config": imported.config, "source": {"kind": kind, "name": Path(source).name}}
    try:
        write_export(out, imported.params, about)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error}") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(imported.params))
    return f"Wrote {out} ({kind}, {count:,} parameters) and {json_path.name}.\n" + _usage(
        kind, out, imported
    )


@contextlib.contextmanager
def config_errors(source: str | Path) -> Iterator[None]:
    """Context manager that converts errors caused by an invalid config.json to a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except _BUILD_ERRORS as error:
        reason = str(error).partition("\n")[0][:300]
        raise UserError(
            f"the config of {source} does not describe a valid model ({reason}): use the config "
            "of the checkpoint"
        ) from error


def _usage(kind: str, out: Path, imported: ImportedWeights) -> str:
    if kind == "internvideo_next":
        return f"To probe it: --config.checkpoint={out}. To start from it: --config.init_from={out}"
    group, section = ("predictor", "text") if kind == "modernbert" else ("teacher", "teacher")
    fields = dict(imported.config[section])
    if kind == "modernbert":
        fields.pop("kind")
        fields.pop("depth", None)
    elif fields["depth"] != _DEFAULT_DEPTH:
        # The taps cover the same fraction of the depth as in the default config.
        count = min(_TAPS, fields["depth"])
        interval = round(3.33 * fields["depth"] / _DEFAULT_DEPTH, 2)
        fields |= {"taps": count, "tap_interval": max(1.0, interval)}
    sizes = " ".join(f"--config.{group}.{name}={value}" for name, value in fields.items())
    return f"To use it: --config.{group}.weights={out} {sizes}"


def read_teacher(kind: str, checkpoint: Checkpoint, source: str | Path) -> ImportedWeights:
    """Reads a frozen image teacher from one of `image_models.FAMILIES`."""
    family = image_models.FAMILIES[kind]
    image_models.refuse_other_libraries(kind, checkpoint, source)
    pixel_stats.check_pixel_stats(Path(source), f"a {kind} teacher", teachers.PIXEL_STATS[kind])
    with config_errors(source):
        sizes = family.sizes(_require_config(checkpoint, source))
        check_sizes(sizes, str(source), _count_values(checkpoint))
        config = ml_collections.ConfigDict({"teacher": sizes, "dtype": "float32"})
        config.teacher.update(size=sizes["train_size"], taps=0, tap_interval=1.0)
        side = sizes["train_size"]
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        expected = _shapes(teachers.from_config(config), image)
    tree = match.read_tree(family.adapt(checkpoint.tensors), expected, family.rules, str(source))
    return ImportedWeights({"teacher": tree}, {"teacher": sizes})


def read_tubelet_encoder(
    kind: str, checkpoint: Checkpoint, source: str | Path
) -> tuple[Any, dict[str, Any]]:
    """Reads a video encoder of another project from one of `video_models.FAMILIES`.

    Returns:
      The parameters of `models.tubelet_encoder.TubeletEncoder`, and its sizes for `from_sizes`.

    Raises:
      UserError: the source is not a valid model of this kind.
    """
    family = video_models.FAMILIES[kind]
    with config_errors(source):
        sizes = family.sizes(_require_config(checkpoint, source))
        tensors = family.adapt(checkpoint.tensors)
        sizes["pool_norm"] = "fc_norm.weight" in tensors
        clip_bthwc = jax.ShapeDtypeStruct(
            (1, sizes["tubelet"], sizes["patch"], sizes["patch"], 3), jnp.float32
        )
        expected = _shapes(tubelet_encoder.from_sizes(sizes), clip_bthwc)
    return match.read_tree(tensors, expected, family.rules, str(source)), sizes


def read_text(checkpoint: Checkpoint, source: str | Path, last_layers: int) -> ImportedWeights:
    """Reads the last layers of ModernBERT, which can initialize a predictor."""
    with config_errors(source):
        sizes = text_models.sizes(_require_config(checkpoint, source))
        check_sizes(sizes, str(source))
        layer = ModernBertLayer(sizes["heads"], sizes["mlp_width"], None, jnp.float32)
        shapes = _shapes(layer, jax.ShapeDtypeStruct((1, 1, sizes["width"]), jnp.float32))
    tensors = text_models.adapt(checkpoint.tensors, last_layers)
    last = sizes["last_layer"]
    numbers = range(last - last_layers + 1, last + 1)
    expected = {f"text/layer{n}/{path}": shape for n in numbers for path, shape in shapes.items()}
    tree = match.read_tree(tensors, expected, text_models.RULES, str(source))
    return ImportedWeights(tree, {"text": sizes})


def read_text_tower(checkpoint: Checkpoint, source: str | Path) -> ImportedWeights:
    """Reads the text tower of a SigLIP, SigLIP 2 or CLIP folder."""
    content = _require_config(checkpoint, source)
    with config_errors(source):
        sizes = text_towers.sizes(content, str(source), _count_values(checkpoint))
        words_jn = jax.ShapeDtypeStruct((1, sizes["length"]), jnp.int32)
        expected = _shapes(TextTower(**sizes), words_jn)
    rules = text_towers.rules(content, str(source))
    tree = match.read_tree(text_towers.adapt(checkpoint.tensors), expected, rules, str(source))
    return ImportedWeights({"text": tree}, {"text": sizes})


def read_video(checkpoint: Checkpoint, source: str | Path) -> ImportedWeights:
    """Reads a video encoder in the published format, and all other parts in the file."""
    with config_errors(source):
        content = _require_config(checkpoint, source)
        config = ml_collections.ConfigDict(
            {"stage": "", "variant": "", "dtype": "float32", "remat": "none", "init_gain": 1.0}
        )
        config.encoder = ml_collections.ConfigDict(published.encoder_config(content, str(source)))
        extra = content.get(published.EXTRA_SECTION, {})
        config.update(extra.get("config", {}))
        check_sizes(config.to_dict(), str(source))
        check_sizes(config.encoder.to_dict(), str(source), _count_values(checkpoint))
        parts = extra["parts"] if config.stage else ("encoder", "pool")
        expected = part_shapes(config, parts)
    pixel_stats.check_pixel_stats(Path(source), "InternVideo-Next", (IMAGENET_MEAN, IMAGENET_STD))
    tensors = published.to_pretraining_names(checkpoint.tensors)
    tree = match.read_tree(tensors, expected, reference.PRETRAINING, str(source))
    return ImportedWeights(tree, config.to_dict())


def part_shapes(config: Any, parts: Iterable[str] | None = None) -> match.Shapes:
    """Returns the parameter shapes of the given parts of a model, by path.

    Args:
      config: a run's config. For the encoder and the pool, only `encoder` and `dtype` are needed.
      parts: top-level names of the parameter tree; None for all of them.

    Raises:
      UserError: the model does not have one of the parts.
    """
    if parts is not None and set(parts) <= {"encoder", "pool"}:
        e = config.encoder
        clip_bthwc = jax.ShapeDtypeStruct((1, 1, e.patch, e.patch, 3), jnp.float32)
        tokens_bnd = jax.ShapeDtypeStruct((1, e.class_tokens + 1, e.width), jnp.float32)
        shapes = {
            "encoder": lambda: _shapes(encoder.from_config(config), clip_bthwc),
            "pool": lambda: _shapes(
                AttentionPool(e.pool_width, e.pool_heads, jnp.dtype(config.dtype)), tokens_bnd
            ),
        }
        return {f"{part}/{k}": v for part in sorted(parts) for k, v in shapes[part]().items()}
    stage = registry.find_stage(config)
    model = stage.make_model(config)
    tree = jax.eval_shape(lambda key: stage.init_params(config, model, key), jax.random.key(0))
    parts = set(tree if parts is None else parts)
    if missing := parts - tree.keys():
        raise UserError(f"a {config.stage} model has no {', '.join(sorted(missing))}")
    return match.leaf_shapes({part: nn.unbox(tree)[part] for part in sorted(parts)})


def _count_values(checkpoint: Checkpoint) -> int:
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def _shapes(module: nn.Module, x: jax.ShapeDtypeStruct) -> match.Shapes:
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return match.leaf_shapes(nn.unbox(variables["params"]))


def _require_config(checkpoint: Checkpoint, source: str | Path) -> Mapping[str, Any]:
    if not checkpoint.config:
        raise UserError(
            f"there is no config.json next to {source}: add the config.json of the checkpoint"
        )
    return checkpoint.config
