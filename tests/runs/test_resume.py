"""A run that is killed after three steps and resumed equals an uninterrupted one bit for bit."""

import jax
import numpy as np
import pytest

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.monitoring import metrics_file, reporter


class KilledError(Exception):
    """Simulates the end of the process."""


def read_history(workdir):
    """Returns the step, the loss and the metrics of `config.eval` of each record."""
    return [
        {k: v for k, v in record.items() if k in ("step", "loss") or k.startswith("eval/")}
        for record in metrics_file.read_metrics(workdir)
    ]


@pytest.mark.parametrize(
    ("stage", "workers", "changes"),
    [
        ("stage1", 1, {}),
        ("stage2", 0, {"target.kind": "frozen"}),
        pytest.param("stage2", 0, {"target.kind": "momentum"}, marks=pytest.mark.slow),
        pytest.param(
            *("stage1", 0, {"teacher.frames_share": 0.5, "quantize_frozen": "int8"}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    stage, workers, changes, tiny_config, request, one_device, tmp_path, monkeypatch
):
    config = tiny_config(stage)
    config.data.workers = workers
    size, frames = config.data.size, config.data.frames
    manifest = f"world:simple/val?videos=8&size={size}&frames={frames}"
    config.eval.update(every_steps=2, manifest=manifest, neighbors=3)
    if stage == "stage2":
        config.init_from = str(request.getfixturevalue("stage1_run"))
    config.update_from_flattened_dict(changes)
    train.train(config, tmp_path / "whole")

    push = reporter.Reporter.add_step

    def push_until_killed(self, step, *arguments):
        push(self, step, *arguments)
        if step == 5:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(reporter.Reporter, "add_step", push_until_killed)
        train.train(config, tmp_path / "killed")
    assert reader.restore_run(tmp_path / "killed").step == 3
    config.data.workers = 1 - workers  # has no effect on the results
    train.train(config, tmp_path / "killed")

    folders = [tmp_path / name / "checkpoints/6" for name in ("whole", "killed")]
    whole, killed = (reader.read_arrays(folder) for folder in folders)
    assert {"params", "opt_state", "step"} <= whole.keys()
    jax.tree.map(np.testing.assert_array_equal, whole, killed)
    whole, killed = (reader.read_json(folder, "data") for folder in folders)
    assert whole == killed
    history = read_history(tmp_path / "whole")
    assert {"loss", "eval/knn_color"} <= {name for record in history for name in record}
    assert read_history(tmp_path / "killed") == history
