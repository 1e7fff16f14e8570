"""What a run's folder tells about it, for exports and reports."""

from pathlib import Path
from typing import Any

from invnext_jax.checkpointing import reader, run_metadata
from invnext_jax.errors import UserError


def read_record(workdir: str | Path) -> dict[str, Any]:
    """The JSON that a run's newest checkpoint keeps: config, step, versions, git hash.

    Raises:
      UserError: there is no checkpoint.
    """
    folder = Path(workdir).absolute() / reader.CHECKPOINTS_FOLDER
    steps = reader.finished_steps(folder)
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint: give the --workdir of a run that saved one"
        )
    record = reader.read_json(folder / str(steps[-1]), "meta")
    return {**record, "config": run_metadata.upgrade_config(record["config"])}
