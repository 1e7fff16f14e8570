"""Other projects' weights as our files: image teachers, text layers, published video encoders.

Strict: names and shapes are compared with what the model wants before anything is read, and every
misfit stands in one table.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from invnext_jax.errors import UserError
from invnext_jax.models import encoder, teachers
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.predictor import ModernBertLayer
from invnext_jax.stages import registry
from invnext_jax.weights import image_models, match, published, reference, text_models
from invnext_jax.weights.export import description_path, find_nonfinite, write_export
from invnext_jax.weights.files import Checkpoint, open_checkpoint

KINDS = (*image_models.FAMILIES, "modernbert", "internvideo_next")


@dataclasses.dataclass(frozen=True)
class Imported:
    """What goes into our file: parameters by part, and the config that describes them."""

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
    """Reads another project's checkpoint and writes ours.

    Args:
      kind: one of `KINDS`.
      source: .safetensors file, or folder with config.json and one or several of them.
      out: the .safetensors file to write; a .json of the same name goes beside it.
      last_layers: of a text model, how many of its last layers are kept.
      overwrite: whether files of that name may be replaced.

    Returns:
      Sentences that say what was written, and how a config names it.

    Raises:
      UserError: a kind that we do not know, a source that does not fit, or `out` exists.
    """
    if kind not in KINDS:
        raise UserError(f"--kind={kind} is none of {', '.join(KINDS)}")
    out, json_path = Path(out), description_path(out)
    if not overwrite and (out.exists() or json_path.exists()):
        raise UserError(f"{out} or its .json exists: name another or --overwrite")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: name a .safetensors file")
    checkpoint = open_checkpoint(source)
    if kind in image_models.FAMILIES:
        imported = read_teacher(kind, checkpoint, source)
    elif kind == "modernbert":
        imported = read_text(checkpoint, source, last_layers)
    else:
        imported = read_video(checkpoint, source)
    if name := find_nonfinite(imported.params):
        raise UserError(f"{source} has weights that are not finite, in our {name}")
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
def _sizes_of(source: str | Path) -> Iterator[None]:
    """Turns what a config.json of nonsense leads to into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"config.json of {source} describes no model that can be built ({reason}): put the "
            "model's own there"
        ) from error


def _usage(kind: str, out: Path, imported: Imported) -> str:
    if kind == "internvideo_next":
        return f"Probe it: --config.checkpoint={out}; go on from it: --config.init_from={out}"
    group, section = ("predictor", "text") if kind == "modernbert" else ("teacher", "teacher")
    fields = dict(imported.config[section])
    if kind == "modernbert":
        fields.pop("kind")
        fields.pop("depth", None)
    sizes = " ".join(f"--config.{group}.{name}={value}" for name, value in fields.items())
    return f"Use it: --config.{group}.weights={out} {sizes}"


def read_teacher(kind: str, checkpoint: Checkpoint, source: str | Path) -> Imported:
    """A frozen image teacher, as `config.teacher` describes it."""
    family = image_models.FAMILIES[kind]
    with _sizes_of(source):
        sizes = family.sizes(_config_of(checkpoint, source))
        config = ml_collections.ConfigDict({"teacher": sizes, "dtype": "float32"})
        config.teacher.update(size=sizes["train_size"], taps=0, tap_interval=1.0)
        image = jnp.zeros((1, sizes["train_size"], sizes["train_size"], 3))
        wanted = _shapes(teachers.from_config(config), image)
    tree = match.read_tree(family.adapt(checkpoint.tensors), wanted, family.rules, str(source))
    return Imported({"teacher": tree}, {"teacher": sizes})


def read_text(checkpoint: Checkpoint, source: str | Path, last_layers: int) -> Imported:
    """The last layers of ModernBERT, from which a predictor starts."""
    with _sizes_of(source):
        sizes = text_models.sizes(_config_of(checkpoint, source))
        layer = ModernBertLayer(sizes["heads"], sizes["mlp_width"], None, jnp.float32)
        shapes = _shapes(layer, jnp.zeros((1, 1, sizes["width"])))
    tensors = text_models.adapt(checkpoint.tensors, last_layers)
    last = sizes["last_layer"]
    numbers = range(last - last_layers + 1, last + 1)
    wanted = {f"text/layer{n}/{path}": shape for n in numbers for path, shape in shapes.items()}
    tree = match.read_tree(tensors, wanted, text_models.RULES, str(source))
    return Imported(tree, {"text": sizes})


def read_video(checkpoint: Checkpoint, source: str | Path) -> Imported:
    """A video encoder in the published layout, and whatever other parts lie in the same file."""
    with _sizes_of(source):
        found = _config_of(checkpoint, source)
        config = ml_collections.ConfigDict(
            {"stage": "", "variant": "", "dtype": "float32", "remat": "none", "init_gain": 1.0}
        )
        config.encoder = ml_collections.ConfigDict(published.encoder_config(found, str(source)))
        config.update(found.get(published.EXTRA, {}).get("config", {}))
        parts = found[published.EXTRA]["parts"] if config.stage else ("encoder", "pool")
        wanted = part_shapes(config, parts)
    tensors = published.pretraining_names(checkpoint.tensors)
    tree = match.read_tree(tensors, wanted, reference.PRETRAINING, str(source))
    return Imported(tree, config.to_dict())


def part_shapes(config: Any, parts: Iterable[str]) -> match.Shapes:
    """Path -> shape of the parameters of some parts of a run's model.

    Args:
      config: with `encoder`; for parts other than encoder and pool, that of a run.
      parts: top-level names of the parameter tree.

    Raises:
      UserError: the model of that config lacks a part.
    """
    parts = set(parts)
    if parts <= {"encoder", "pool"}:
        e = config.encoder
        clip_bthwc = jnp.zeros((1, 1, e.patch, e.patch, 3))
        tokens_bnd = jnp.zeros((1, e.class_tokens + 1, e.width))
        pool = AttentionPool(e.pool_width, e.pool_heads, jnp.dtype(config.dtype))
        shapes = {
            "encoder": lambda: _shapes(encoder.from_config(config), clip_bthwc),
            "pool": lambda: _shapes(pool, tokens_bnd),
        }
        return {f"{part}/{k}": v for part in sorted(parts) for k, v in shapes[part]().items()}
    stage = registry.find_stage(config)
    model = stage.make_model(config)
    tree = jax.eval_shape(lambda key: stage.init_params(config, model, key), jax.random.key(0))
    if missing := parts - tree.keys():
        raise UserError(f"a {config.stage} model has no {', '.join(sorted(missing))}")
    return match.shapes_of({part: nn.unbox(tree)[part] for part in sorted(parts)})


def _shapes(module: nn.Module, x: jax.Array) -> match.Shapes:
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return match.shapes_of(nn.unbox(variables["params"]))


def _config_of(checkpoint: Checkpoint, source: str | Path) -> Mapping[str, Any]:
    if not checkpoint.config:
        raise UserError(f"there is no config.json beside {source}: put the model's own there")
    return checkpoint.config
