"""What a run's folder tells about it, for exports and reports."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError


def read_record(workdir: str | Path) -> dict[str, Any]:
    """The JSON that a run's newest checkpoint keeps: config, step, versions, git hash.

    Raises:
      UserError: there is no checkpoint.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    steps = (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    )
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint: give the --workdir of a run that saved one"
        )
    options = ocp.CheckpointManagerOptions(create=False)
    handlers = {"meta": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder, item_handlers=handlers, options=options) as manager:
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        record = manager.restore(steps[-1], args=items)["meta"]
    return {**record, "config": run_metadata.upgrade_config(record["config"])}
