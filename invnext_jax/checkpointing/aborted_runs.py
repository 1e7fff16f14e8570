"""How to continue a run that was aborted because of non-finite losses."""

import contextlib

from invnext_jax.checkpointing import reader, retention, storage


def describe_restart(folder: storage.Path) -> str:
    """Returns a sentence with the newest checkpoint from before the skipped steps, and its use.

    Args:
      folder: the run's checkpoint folder.
    """
    step = None
    with contextlib.suppress(OSError):
        step = retention.find_newest_applied(folder, reader.finished_steps(folder))
    if step is None:
        return "No checkpoint is from before the skipped steps: start again in another --workdir"
    return (
        f"The newest checkpoint from before the skipped steps is that of step {step}; to use it "
        f"with other options, run `launch/export.py --checkpoint={folder.parent} --step={step} "
        "--parts=all --out=FILE.safetensors`, and start another --workdir with "
        "--config.init_from=FILE.safetensors"
    )
