"""From a run to files that others load: writes an export and proves that it gives equal features.

Memory stays near one copy of the weights: tensors are turned, written, read back and compared one
at a time.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import export_check, pretrained
from invnext_jax.models.patches import IMAGENET_MEAN, IMAGENET_STD
from invnext_jax.weights import export, files, layout, match, published, reference

FORMATS = ("ours", "internvideo_next")
DTYPES = ("float32", "float16", "bfloat16")
# What of a run's config tells how to build its parts; paths of the run's machine stay out.
KEPT = ("stage", "variant", "dtype", "remat", "init_gain", "encoder", "predictor", "decoder")
KEPT += ("teacher", "target", "loss")


class ExportFormat(NamedTuple):
    """How an export is written: "ours" or "internvideo_next", and the type of its tensors."""

    format: str = "ours"
    dtype: str = "float32"


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    parts: Sequence[str] = (),
    form: ExportFormat = ExportFormat(),  # noqa: B008  a tuple
    overwrite: bool = False,
    ema: bool = False,
) -> str:
    """Writes `parts` of a run's newest checkpoint to `out`.

    All files are first written to a folder beside `out`, read back, and compared: each tensor bit
    for bit (float32), and the features of a fixed clip. Only then do they take their place.

    Args:
      run: workdir of a pretraining run, or one of our exports.
      out: "ours": a .safetensors file, beside which a .json goes; "internvideo_next": a folder.
      parts: top-level names of the parameter tree ("encoder", "pool", "predictor", ...), or "all";
        none: the encoder and, where there is one, its pool.
      form: layout and type of the files.
      overwrite: whether other files of that name may be replaced.
      ema: whether the run's moving average is written instead of its parameters.

    Returns:
      A sentence that says what was done.

    Raises:
      UserError: a part is missing, other weights lie at `out`, or the loaded features differ.
    """
    check_form(form)
    out = Path(out)
    params, config = pretrained.load_params(run, ema=ema)
    parts = choose_parts(run, params, parts)
    chosen = {part: params.pop(part) for part in parts}
    params.clear()
    check_named(config, parts, form)
    tensors = named_tensors(chosen, form)
    targets, about = targets_of(out, form), describe(run, config, parts)
    if ema:
        about["source"]["ema"] = True
    if any(target.exists() for target in targets) and not overwrite:
        same = all(target.exists() for target in targets) and form.dtype == "float32"
        if same and _holds(out, about, tensors):
            return f"{out} holds these very weights already; nothing was written."
        raise UserError(
            f"{out} or a file beside it exists with other content: name another or --overwrite"
        )

    count = sum(leaf.size for leaf in jax.tree.leaves(chosen))
    proof = "every tensor is equal" if form.dtype == "float32" else "there is no encoder to compare"
    with _draft_folder(out) as folder:
        draft = folder / out.name
        if form.format == "ours":
            export.write_export(draft, chosen, about)
        else:
            write_published(draft, config, tensors, about, form.dtype)
        if form.dtype == "float32":
            _check_same_tensors(draft, tensors)
        if "encoder" in chosen:
            encoder = chosen["encoder"]
            if name := export.find_nonfinite(encoder):
                raise UserError(
                    f"the encoder of {run} has weights that are not finite, in {name}: "
                    "name an earlier step"
                )
            chosen.clear()
            tensors.clear()  # they hold on to the arrays
            before = export_check.clip_features(config, encoder)
            change = export_check.check_same_features(
                before, draft, export_check.TOLERANCE[form.dtype]
            )
            proof = "the features of a fixed clip are equal"
            if change:
                proof = f"the features of a fixed clip change by {change:.2%} of the largest"
        _move(targets_of(draft, form), targets)
    said = f"Wrote {out} ({' and '.join(parts)}, {count:,} parameters, {form.dtype})"
    return f"{said}; read back, {proof}."


@contextlib.contextmanager
def _draft_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards; what a killed export left there goes too."""
    folder = out.parent / f".{out.name}.draft"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose_parts(run: str | Path, params: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """The parts to write; see `export_run`.

    Raises:
      UserError: the run does not have one of them.
    """
    if not parts:
        return [part for part in ("encoder", "pool") if part in params]
    if tuple(parts) == ("all",):
        return sorted(params)
    if missing := [part for part in parts if part not in params]:
        raise UserError(f"{run} holds no {missing[0]}, only {', '.join(sorted(params))}")
    return list(dict.fromkeys(parts))


def check_form(form: ExportFormat) -> None:
    """Checks layout and type.

    Raises:
      UserError: one of them is not known, or ours is to be narrowed.
    """
    if form.format not in FORMATS:
        raise UserError(f"--format={form.format} is none of {', '.join(FORMATS)}")
    if form.dtype not in DTYPES:
        raise UserError(f"--dtype={form.dtype} is none of {', '.join(DTYPES)}")
    if form.format == "ours" and form.dtype != "float32":
        raise UserError("--format=ours is always float32: leave --dtype out")


def targets_of(out: Path, form: ExportFormat) -> list[Path]:
    """The files of an export.

    Raises:
      UserError: `out` is a file where a folder is wanted, or the other way round.
    """
    if form.format == "ours":
        if out.is_dir():
            raise UserError(f"--out={out} is a folder: name a .safetensors file")
        return [out, export.description_path(out)]
    if out.suffix == ".safetensors" or out.is_file():
        raise UserError(
            f"--out={out} must be a folder in the published layout: leave .safetensors out"
        )
    return [out / name for name in (files.SINGLE_FILE, published.CONFIG, published.PREPROCESSOR)]


def check_named(config: Any, parts: Sequence[str], form: ExportFormat) -> None:
    """Checks that the released code has the modules behind the parts.

    Raises:
      UserError: their names fit, but not what they stand for.
    """
    if form.format == "ours":
        return
    if "decoder" in parts and config.decoder.kind != "diffusion":
        raise UserError(
            f"the released code has no decoder of kind {config.decoder.kind!r}: leave it out of "
            "--parts, or take --format=ours"
        )
    if "head" in parts and config.get("target", {}).get("kind", "frozen") == "image":
        raise UserError(
            "the released code has no head into an image teacher's space: leave it out of --parts, "
            "or take --format=ours"
        )


def named_tensors(params: Mapping[str, Any], form: ExportFormat) -> dict[str, files.LazyTensor]:
    """The tensors of a file, each turned into the file's layout when it is read.

    Raises:
      UserError: the published layout has no name for a parameter.
    """
    ours = export.lazy_tensors(params)
    if form.format == "ours":
        return ours
    shapes = {path: tensor.shape for path, tensor in ours.items()}
    try:
        sources = dict(layout.pytorch_names(shapes, reference.PUBLISHED))
    except KeyError as error:
        raise UserError(
            f"the released code has no such module ({error.args[0]}): leave this part out of "
            "--parts, or take --format=ours"
        ) from error
    leaves = {path: tensor.read for path, tensor in ours.items()}
    return {
        name: files.LazyTensor(
            match.pytorch_shape(shapes[source.path], source),
            lambda source=source: source.to_pytorch(leaves[source.path]()),
        )
        for name, source in sources.items()
    }


def write_published(
    folder: Path, config: Any, tensors: Mapping[str, files.LazyTensor], about: Any, dtype: str
) -> None:
    """Writes the three files of the published layout into a new folder."""
    folder.mkdir()
    # Loaders of PyTorch models look for this word.
    files.write_tensors(folder / files.SINGLE_FILE, tensors, dtype=dtype, metadata={"format": "pt"})
    pixels = about["input"]
    published.write_configs(
        folder, config.encoder, about, dtype, mean=pixels["mean"], std=pixels["std"]
    )


def describe(run: str | Path, config: Any, parts: Sequence[str]) -> dict[str, Any]:
    """What stands in the JSON: the config of the parts, and where they come from."""
    kept = type(config)({name: config[name] for name in KEPT if name in config}).to_dict()
    for section in ("teacher", "predictor"):
        kept.get(section, {}).pop("weights", None)
    if "data" in config:
        kept["data"] = {"frames": config.data.frames, "size": config.data.size}
    return {
        "parts": sorted(parts),
        "config": run_metadata.config_to_json(type(config)(kept)),
        "input": {
            "shape": "video [b t h w c] RGB / 255, then (x - mean) / std",
            "mean": [round(float(x), 3) for x in IMAGENET_MEAN],
            "std": [round(float(x), 3) for x in IMAGENET_STD],
        },
        "source": source_of(run),
    }


def source_of(run: str | Path) -> dict[str, Any]:
    """Where the weights come from."""
    if not Path(run).is_dir() or (Path(run) / files.SINGLE_FILE).is_file():
        return {"file": Path(run).name}
    record = pretrained.read_run_record(run)
    return {
        "run": Path(run).resolve().name,
        **{name: record[name] for name in ("step", "git", "versions")},
    }


def _holds(out: Path, about: Any, tensors: Mapping[str, files.LazyTensor]) -> bool:
    """Whether an export lies there already, with this config and these tensors."""
    found = pretrained.read_export_config(out)
    return found == about["config"] and export.same_tensors(
        files.open_checkpoint(out).tensors, tensors
    )


def _check_same_tensors(path: Path, tensors: Mapping[str, files.LazyTensor]) -> None:
    if not export.same_tensors(files.open_checkpoint(path).tensors, tensors):
        raise UserError(f"{path.name} was not written as it should: is the disk full or damaged?")


def _move(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    # The description last: until it is there, a repeat sees another export and writes it again.
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
