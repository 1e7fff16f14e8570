"""Draws masks, reconstructions and features of the newest checkpoint of a run.

    python -m invnext_jax.watching.make_strips WORKDIR --clips=2 --out=strips.json
    python -m invnext_jax.watching.make_strips WORKDIR --clips=2 --wait_for=500 --tensorboard=FOLDER

`launch/watch.py` and runs with `config.log.strips` run it as a separate process.
"""

import argparse
import base64
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from invnext_jax import atomic_file, command_output, errors
from invnext_jax.checkpointing import reader, run_record, storage
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.evaluation.pages import run_clips
from invnext_jax.evaluation.pages.reported_run import ReportedRun
from invnext_jax.monitoring.tensorboard_events import Event, EventsWriter, Summary
from invnext_jax.training import compilation

_WAIT_SECONDS = 600.0  # a checkpoint is written in the background
_POLL_SECONDS = 1.0


def main() -> None:
    """Draws the clips, and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", help="workdir of the run")
    parser.add_argument("--clips", type=int, required=True, help="number of clips")
    parser.add_argument("--wait_for", type=int, help="wait for the checkpoint of this step")
    parser.add_argument(
        "--trusted", action="store_true", help="read the manifest as the run itself does"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--tensorboard", type=Path, help="folder of TensorBoard events to write")
    options = parser.parse_args()
    os.nice(19)
    command_output.sanitize_output()
    compilation.enable_cache()
    with errors.exit_on_user_error():
        workdir = storage.open_path("the run", options.workdir)
        if options.wait_for is not None:
            wait_for_checkpoint(workdir, options.wait_for)
        found = draw_newest(workdir, options.clips, is_trusted=options.trusted)
    if options.out:
        atomic_file.write_text(options.out, json.dumps(found))
    if options.tensorboard:
        write_events(options.tensorboard, found)


def wait_for_checkpoint(workdir: storage.Path, step: int) -> None:
    """Waits until the checkpoint of a step, or a later one, is finished.

    Raises:
      errors.UserError: there is no such checkpoint after 10 minutes.
    """
    end = time.monotonic() + _WAIT_SECONDS
    while max(reader.finished_steps(workdir / reader.CHECKPOINTS_FOLDER), default=-1) < step:
        if time.monotonic() > end:
            raise errors.UserError(f"{workdir} has no checkpoint of step {step}: was it saved?")
        time.sleep(_POLL_SECONDS)


def draw_newest(workdir: storage.Path, clips: int, *, is_trusted: bool = False) -> dict[str, Any]:
    """Draws the first clips with the newest checkpoint of a run.

    Args:
      workdir: workdir of the run.
      clips: number of clips.
      is_trusted: whether the config of the run decides which files are read; see
        `run_clips.show_clips`.

    Returns:
      The dict of `run_clips.show_clips` and the checkpoint's step as "step".

    Raises:
      errors.UserError: the run has no checkpoint, or its videos cannot be read.
    """
    record = run_record.read_run_record(workdir)
    run = ReportedRun(workdir, record, [])
    rules = AccessRules.from_config(run.config.data) if is_trusted else None
    return {**run_clips.show_clips([run], [], clips, rules), "step": record["step"]}


def write_events(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes clips as images to a new TensorBoard event file.

    Args:
      folder: folder of the events. It must differ from that of the run's metrics, because
        TensorBoard stops reading a file when there is a newer one in its folder.
      found: a result of `draw_newest`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    event = Event(wall_time=time.time(), step=found["step"])
    for number, clip in enumerate(found["clips"]):
        for strip in clip["strips"]:
            content = base64.b64decode(strip["uri"].partition(",")[2])
            width, height = Image.open(io.BytesIO(content)).size
            image = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=content
            )
            event.summary.value.add(tag=f"{strip['title']}/clip {number}", image=image)
    writer = EventsWriter(str(folder / "events"), f".step{found['step']}")
    writer.write_event(event)
    writer.close()


if __name__ == "__main__":
    main()
