"""Exports the weights of a run, and checks that the export computes the same features.

Tensors are converted, written, read back and compared one at a time, so that the peak memory is
little more than one copy of the weights.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from invnext_jax import atomic_file
from invnext_jax.checkpointing import run_metadata, run_record
from invnext_jax.errors import UserError
from invnext_jax.evaluation import export_check, pretrained
from invnext_jax.models import heads
from invnext_jax.models.patches import IMAGENET_MEAN, IMAGENET_STD
from invnext_jax.weights import export, files, import_weights, layout, match, published, reference

FORMATS = ("ours", "internvideo_next")
DTYPES = ("float32", "float16", "bfloat16")
# Fields of a run's config that describe its parts. Paths on the run's machine are excluded.
KEPT = ("stage", "variant", "dtype", "remat", "init_gain", "encoder", "predictor", "decoder")
KEPT += ("teacher", "target", "loss")
KEPT_CLIPS = ("frames", "size", "sampling", "stride", "by_source")  # of `config.data`


class ExportFormat(NamedTuple):
    """Layout of an export ("ours" or "internvideo_next") and dtype of its tensors."""

    format: str = "ours"
    dtype: str = "float32"


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    parts: Sequence[str] = (),
    export_format: ExportFormat = ExportFormat(),  # noqa: B008
    overwrite: bool = False,
    ema: bool = False,
    step: int | None = None,
) -> str:
    """Writes the given parts of a checkpoint of a run to `out`.

    All files are first written to a temporary folder next to `out` and read back. The features of a
    fixed clip are compared and, for float32, all tensors bit for bit. The files are then moved to
    `out`.

    Args:
      run: workdir of a pretraining run, or an earlier export.
      out: for "ours", a .safetensors file (a .json file is written next to it); for
        "internvideo_next", a folder.
      parts: top-level names in the parameter tree ("encoder", "pool", "predictor", ...) or "all".
        () means the encoder and, if it exists, its pool.
      export_format: layout and dtype.
      overwrite: whether to replace existing files.
      ema: whether to write the moving average of the parameters instead of the parameters.
      step: step of the checkpoint; None means the newest.

    Returns:
      A description of the written files.

    Raises:
      UserError: a part is missing, `out` has different weights, or the features differ.
    """
    check_format(export_format)
    out = Path(out)
    params, config, found_step, *_ = pretrained.load_weights(run, ema, step)
    parts = choose_parts(run, params, parts)
    chosen = {part: params.pop(part) for part in parts}
    params.clear()
    with import_weights.config_errors(run):
        check_parts(config, parts, export_format)
        about = describe_export(run, config, parts, found_step)
    tensors, targets = convert_tensors(chosen, export_format), output_paths(out, export_format)
    if ema:
        about["source"]["ema"] = True
    if any(os.path.exists(target) for target in targets) and not overwrite:
        same = (
            all(os.path.exists(target) for target in targets) and export_format.dtype == "float32"
        )
        if same and _is_up_to_date(out, about, tensors):
            return f"{out} already has these weights. Nothing was written."
        raise UserError(
            f"{out} or a file next to it exists with different contents: change --out or add "
            "--overwrite"
        )

    count = sum(leaf.size for leaf in jax.tree.leaves(chosen))
    note = f" Note: {heads.UNTRAINED_POOL}." if heads.is_untrained_pool(chosen.get("pool")) else ""
    with _draft_folder(out) as folder:
        draft = folder / out.name
        if export_format.format == "ours":
            export.write_export(draft, chosen, about)
        else:
            write_published(draft, config, tensors, about, export_format.dtype)
        check = export_check.check_export(draft, run, config, chosen, tensors, export_format.dtype)
        _move(output_paths(draft, export_format), targets)
    summary = f"Wrote {out} ({' and '.join(parts)}, {count:,} parameters, {export_format.dtype})"
    return f"{summary}. Read back: {check}.{note}"


@contextlib.contextmanager
def _draft_folder(out: Path) -> Iterator[Path]:
    """Creates a temporary folder next to `out`, after removing those of killed exports."""
    atomic_file.remove_temporary_files(out)
    try:
        with atomic_file.temporary_folder(out) as folder:
            yield folder
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error}") from error


def choose_parts(run: str | Path, params: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """Returns the parts to export; see `parts` of `export_run`.

    Raises:
      UserError: the run does not have one of the parts.
    """
    if not parts:
        return [part for part in ("encoder", "pool") if part in params]
    if tuple(parts) == ("all",):
        return sorted(params)
    if missing := [part for part in parts if part not in params]:
        raise UserError(f"{run} has no {missing[0]}, only {', '.join(sorted(params))}")
    return list(dict.fromkeys(parts))


def check_format(export_format: ExportFormat) -> None:
    """Checks layout and dtype.

    Raises:
      UserError: the layout or dtype is unknown, or the layout does not support the dtype.
    """
    if export_format.format not in FORMATS:
        raise UserError(f"--format={export_format.format} is not one of {', '.join(FORMATS)}")
    if export_format.dtype not in DTYPES:
        raise UserError(f"--dtype={export_format.dtype} is not one of {', '.join(DTYPES)}")
    if export_format.format == "ours" and export_format.dtype != "float32":
        raise UserError("--format=ours is always float32: remove --dtype")


def output_paths(out: Path, export_format: ExportFormat) -> list[Path]:
    """Returns the files of an export.

    Raises:
      UserError: `out` is a file but the layout needs a folder, or vice versa.
    """
    if export_format.format == "ours":
        if os.path.isdir(out):
            raise UserError(f"--out={out} is a folder: specify a .safetensors file")
        return [out, export.description_path(out)]
    if out.suffix == ".safetensors" or os.path.isfile(out):
        raise UserError(f"--out={out} must be a folder with --format=internvideo_next: change it")
    return [out / name for name in (files.SINGLE_FILE, published.CONFIG, published.PREPROCESSOR)]


def check_parts(config: Any, parts: Sequence[str], export_format: ExportFormat) -> None:
    """Checks that the modules of the parts exist in the released code.

    Raises:
      UserError: the module with the same name in the released code is different.
    """
    if export_format.format == "ours":
        return
    if "decoder" in parts and config.decoder.kind != "diffusion":
        raise UserError(
            f"the released code has no decoder of kind {config.decoder.kind!r}: remove it from "
            "--parts, or use --format=ours"
        )
    if "head" in parts and config.get("target", {}).get("kind", "frozen") == "image":
        raise UserError(
            "the released code has no head for an image teacher's features: remove it from "
            "--parts, or use --format=ours"
        )


def convert_tensors(
    params: Mapping[str, Any], export_format: ExportFormat
) -> dict[str, files.LazyTensor]:
    """Returns the tensors to write. Each is converted to the export's layout when it is read.

    Raises:
      UserError: the published layout has no name for a parameter.
    """
    tensors = export.lazy_tensors(params)
    if export_format.format == "ours":
        return tensors
    shapes = {path: tensor.shape for path, tensor in tensors.items()}
    try:
        sources = dict(layout.pytorch_names(shapes, reference.PUBLISHED))
    except KeyError as error:
        raise UserError(
            f"the released code has no such module ({error.args[0]}): remove this part from "
            "--parts, or use --format=ours"
        ) from error
    leaves = {path: tensor.read for path, tensor in tensors.items()}
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
    # This value is required by loaders of PyTorch models.
    files.write_tensors(folder / files.SINGLE_FILE, tensors, dtype=dtype, metadata={"format": "pt"})
    pixels = about["input"]
    published.write_configs(
        folder, config.encoder, about, dtype, mean=pixels["mean"], std=pixels["std"]
    )


def describe_export(
    run: str | Path, config: Any, parts: Sequence[str], step: int | None
) -> dict[str, Any]:
    """Returns the contents of the .json file: the config of the parts and their source."""
    kept = type(config)({name: config[name] for name in KEPT if name in config}).to_dict()
    for section in ("teacher", "predictor"):
        kept.get(section, {}).pop("weights", None)
    if "data" in config:
        data = config.data.to_dict()
        kept["data"] = {name: data[name] for name in KEPT_CLIPS if name in data}
    return {
        "parts": sorted(parts),
        "config": run_metadata.config_to_json(type(config)(kept)),
        "input": {
            "shape": "video [b t h w c] RGB / 255, then (x - mean) / std",
            "mean": [round(float(x), 3) for x in IMAGENET_MEAN],
            "std": [round(float(x), 3) for x in IMAGENET_STD],
        },
        "source": describe_source(run, step),
    }


def describe_source(run: str | Path, step: int | None) -> dict[str, Any]:
    """Returns the origin of the weights: run, step, versions and git hash, or a file name."""
    if step is None:
        return {"file": Path(run).name}
    record = run_record.read_run_record(run, step)
    return {
        "run": os.path.basename(os.path.realpath(run)),
        **{name: record[name] for name in ("step", "git", "versions")},
    }


def _is_up_to_date(out: Path, about: Any, tensors: Mapping[str, files.LazyTensor]) -> bool:
    """Returns whether `out` is already an export with this config and these tensors."""
    found = pretrained.read_export_config(out)
    return found == about["config"] and export.same_tensors(
        files.open_checkpoint(out).tensors, tensors
    )


def _move(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    # The description is moved last: until it exists, a repeated command writes the export again.
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.replace(source, target)
