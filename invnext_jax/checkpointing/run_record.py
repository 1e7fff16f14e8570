"""Reads and checks the metadata of a run, which may come from an unknown source."""

from pathlib import Path
from typing import Any

import ml_collections

from invnext_jax import field_checks, regular_file
from invnext_jax.checkpointing import reader, run_metadata, storage
from invnext_jax.errors import UserError, summarize_error
from invnext_jax.field_checks import COUNT, NUMBER, OBJECT, TEXT, Fields, integer

MAX_DEPTH = 32  # maximum number of nested sections of a config
MAX_SECONDS = 1e6  # maximum time limit of a clip
_ADVICE = "use another run"

_LINE = field_checks.line(0, field_checks.MAX_NAME)
_RECORD: Fields = {
    **{"config": OBJECT, "step": COUNT, "git": field_checks.optional(_LINE)},
    "versions": field_checks.object_of(_LINE, "an object with short lines", _LINE),
}
# The fields of a config that pages and exports read, by section; "" for those without a section.
_SIZE = integer(1, 2**31)
_CONFIG: dict[str, Fields] = {
    "": {
        **dict.fromkeys(("stage", "variant"), _LINE),
        **dict.fromkeys(("batch_size", "total_steps"), COUNT),
        "seed": integer(-(2**63), 2**63 - 1),
        **dict.fromkeys(("encoder", "data", "optimizer", "predictor", "mask", "loss"), OBJECT),
    },
    "encoder": dict.fromkeys(("size", "patch", "depth", "width", "heads"), _SIZE),
    "data": {
        **dict.fromkeys(("frames", "size", "short_side"), _SIZE),
        **{"manifest": TEXT, "clip_seconds": field_checks.in_range(0, MAX_SECONDS)},
    },
    "optimizer": {
        **dict.fromkeys(("learning_rate", "min_learning_rate"), NUMBER),
        "warmup_steps": COUNT,
    },
    "predictor": {"depth": COUNT, "kind": _LINE},
    "mask": {"kind": _LINE},
}


def read_run_record(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """Returns the metadata of a run's checkpoint: config, step, versions, git hash.

    Args:
      workdir: the run's workdir.
      step: step of the checkpoint; None means the newest.

    Raises:
      UserError: the run has no such checkpoint, or its metadata are damaged.
    """
    folder = storage.open_path("the run", workdir) / reader.CHECKPOINTS_FOLDER
    steps = reader.finished_steps(folder)
    if not steps:
        reason = reader.describe_missing(workdir) or "has no checkpoint"
        raise UserError(f"{workdir} {reason}: use the --workdir of a run that saved a checkpoint")
    checkpoint = folder / str(steps[-1] if step is None else step)
    try:
        record = reader.read_json(checkpoint, "meta")
    except regular_file.DAMAGE as error:
        raise UserError(f"{checkpoint} is damaged ({summarize_error(error)}): {_ADVICE}") from error
    field_checks.check_fields(record, _RECORD, f"{checkpoint}: ", _ADVICE, _RECORD)
    field_checks.check_depth(record, MAX_DEPTH, str(checkpoint), _ADVICE)
    return {**record, "config": run_metadata.upgrade_config(record["config"])}


def check_config(config: dict[str, Any], source: str) -> None:
    """Checks the fields of a run's config that pages read.

    Args:
      config: the config as read from a JSON file.
      source: origin of the config, for the error message.

    Raises:
      UserError: a field is missing or has an unexpected type, or the config is nested too deeply.
    """
    field_checks.check_depth(config, MAX_DEPTH, source, _ADVICE)
    for section, fields in _CONFIG.items():
        found, where = (config[section], f"{section}.") if section else (config, "")
        field_checks.check_fields(found, fields, f"{source}: config.{where}", _ADVICE, fields)
    try:
        ml_collections.ConfigDict(config)
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # not a valid name
        raise UserError(
            f"{source} has a damaged config ({summarize_error(error)}): {_ADVICE}"
        ) from error
