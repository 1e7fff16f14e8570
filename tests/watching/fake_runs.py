"""Workdirs of runs for the tests of the page, without training."""

import contextlib
import json
import threading

from configs import stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.watching import watch

TOTAL_STEPS = 40


def write_run(workdir, steps=(1, 2), **changes):
    """Writes the config and the metrics of a Stage 1 run."""
    config = stage1.get_config("tiny")
    config.total_steps = TOTAL_STEPS
    config.optimizer.update(learning_rate=1e-3, min_learning_rate=1e-5, warmup_steps=4)
    config.update(changes)
    workdir.mkdir(parents=True, exist_ok=True)
    tree = run_metadata.config_to_json(config)
    (workdir / "config.json").write_text(json.dumps(tree))
    add_records(workdir, steps)


def add_records(workdir, steps, **values):
    """Appends records of metrics.jsonl."""
    with open(workdir / "metrics.jsonl", "a") as file:
        for step in steps:
            record = {"step": step, "loss": 8.0 / step, "clips_per_second": 20.0, **values}
            file.write(json.dumps(record) + "\n")


def write_checkpoint(workdir, step, aborted=""):
    """Writes the metadata of a checkpoint."""
    folder = workdir / "checkpoints" / str(step) / "meta"
    folder.mkdir(parents=True)
    config = json.loads((workdir / "config.json").read_text())
    meta = {"config": config, "step": step, "git": "a" * 40, "versions": {"jax": "1.2.3"}}
    (folder / "metadata").write_text(json.dumps({**meta, "aborted": aborted}))


@contextlib.contextmanager
def run_server(folder):
    """Serves the page of a folder in a thread."""
    server = watch.open_server(folder, port=0, clips=0, seconds=0.02)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.page.close()
