"""Both stages train with the tiny configs, which are reduced further, on video files."""

import contextlib
import json

import jax
import ml_collections
import numpy as np
import pytest

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.errors import UserError
from invnext_jax.monitoring import metrics_file, reporter

ALWAYS = {"loss", "grad_norm", "learning_rate", "clips_per_second", "data_wait", "dropped_videos"}
LOGGED = {
    "stage1": {
        *("loss/align_tokens", "loss/align_pooled", "loss/pixels"),
        *("encoder_grad/pixels", "conditioning_gap", "latent_rank"),
    },
    "stage2": {
        *("loss/predict_0", "loss/predict_1", "encoder_grad/predict_0"),
        *("target_std", "target_rank", "prediction_rank", "target_position_share"),
    },
}


@pytest.fixture
def compile_counts(monkeypatch):
    """The number of programs compiled up to each step, followed by the total."""
    compiled, counts = [], []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    push = reporter.Reporter.add_step

    def push_and_count(self, *arguments):
        push(self, *arguments)
        counts.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(listen)
    monkeypatch.setattr(reporter.Reporter, "add_step", push_and_count)
    yield lambda: [*counts, len(compiled)]
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stage_trains_saves_logs_and_compiles_once(
    stage, tiny_config, stage1_run, compile_counts, tmp_path
):
    config = tiny_config(stage)
    config.log.diagnostics_every_steps = 2
    config.init_from = str(stage1_run) if stage == "stage2" else ""
    last = train.train(config, tmp_path / "run")

    records = metrics_file.read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert last == records[-1]
    for record in records:
        assert record.keys() >= ALWAYS
        assert np.isfinite([value for value in record.values() if value is not None]).all()
        assert record["nonfinite"] == record["dropped_videos"] == 0
    assert last.keys() >= LOGGED[stage]
    assert json.loads((tmp_path / "run/config.json").read_text())["stage"] == stage
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["3", "6"]
    assert list((tmp_path / "run/tensorboard").iterdir())

    counts = compile_counts()
    assert len(counts) == 7
    assert 0 < counts[0] == counts[-1]

    if stage == "stage2":
        start, end = (reader.restore_params(path)[0] for path in (stage1_run, tmp_path / "run"))
        jax.tree.map(np.testing.assert_array_equal, start["pool"], end["pool"])
        moved = jax.tree.map(lambda a, b: np.any(a != b), start["encoder"], end["encoder"])
        assert any(jax.tree.leaves(moved))


def test_stage2_without_stage1_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="Stage 2 starts from Stage 1"):
        train.train(tiny_config("stage2"), tmp_path / "run")


def test_stage2_of_another_size_than_its_stage1_is_refused(tiny_config, stage1_run, tmp_path):
    config = tiny_config("stage2")
    config.init_from = str(stage1_run)
    config.encoder.mlp_width = 128
    with pytest.raises(UserError, match=r"encoder\.mlp_width: \d+ in that run, 128 in this run"):
        train.train(config, tmp_path / "run")


def test_unreadable_videos_end_the_run_with_a_user_error(tiny_config, one_device, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.csv").write_text("path,source\nbad.mp4,world\n")
    config = tiny_config("stage1")
    config.data.manifest = str(tmp_path / "bad.csv")
    with pytest.raises(UserError, match="no readable video"):
        train.train(config, tmp_path / "run")


def test_another_predictor_starts_from_random_values_with_the_stage1_encoder(
    tiny_config, stage1_run, tmp_path, capsys
):
    config = tiny_config("stage2")
    config.init_from = str(stage1_run)
    config.predictor.kind = "vjepa"
    config.target.kind = "momentum"
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(UserError, match="predictor.kind: 'modernbert' in that run, 'vjepa' in"),
    ):
        train.prepare(ml_collections.FrozenConfigDict(config), tmp_path / "run", stack)
    config.init_parts = ("encoder", "pool")
    with contextlib.ExitStack() as stack:
        run = train.prepare(ml_collections.FrozenConfigDict(config), tmp_path / "run", stack)
    log = capsys.readouterr().out
    for group in ("encoder", "pool"):
        assert f"taken from {stage1_run}: {group} (" in log
    assert f"head is initialized randomly: it is not taken from {stage1_run}" in log
    assert (
        "predictor is initialized without a text model (config.predictor.weights is empty)" in log
    )
    state = run.state
    jax.tree.map(np.testing.assert_array_equal, state.follow["target"], state.params["encoder"])
    assert run.frozen == {}
