"""Predicted costs are those of the planner, and jobs that do not fit are refused."""

import dataclasses
import json
import re

import pytest

from invnext_jax.errors import UserError
from invnext_jax.planning import fitting, flops, plan
from invnext_jax.planning.devices import DEVICES
from invnext_jax.sweeps import commands, cost
from invnext_jax.sweeps.arms import Arm, Step, chain
from invnext_jax.sweeps.expansion import expand
from invnext_jax.sweeps.step_config import Kind, load_step
from invnext_jax.sweeps.sweep_file import Sweep

SMALL = {"encoder.depth": 2, "predictor.depth": 1, "data.frames": 2, "total_steps": 10}
VIDEOS = "world:simple/train?videos=64"


def make_arm(name, **overrides):
    steps = chain(stage1="configs/stage1.py:tiny", probe="configs/eval/tasks/linear_probe.py:tiny")
    manifests = {"train_manifest": VIDEOS, "val_manifest": "world:simple/val?videos=16"}
    overrides = {**SMALL, "data.manifest": VIDEOS, **overrides}
    return Arm(name, (steps[0].with_overrides(overrides), steps[1].with_overrides(manifests)))


def expand_arms(tmp_path, *arms, settings=()):
    return expand(Sweep("test", arms, {}), tmp_path, commands.parse_settings(settings))


@pytest.fixture
def fake_plans(monkeypatch):
    """A planner that needs no tracing: a byte for each clip of a microbatch. Returns its calls."""
    made = []

    def make_plan(config, device, videos, devices):
        made.append((config.batch_size, videos, devices))
        peak = config.batch_size / config.accumulate / devices
        sizes = {"peak_bytes": peak, "memory_bytes": 100.0, "fits": peak <= 100.0}
        return {**sizes, "step_flops": 1e9 * config.batch_size, "step_seconds": 36.0}

    monkeypatch.setattr(plan, "make_plan", make_plan)
    return made


def test_costs_of_a_training_are_those_of_the_planner(tmp_path):
    sweep, configs = expand_arms(tmp_path, make_arm("a"))
    costs = cost.predict_costs(sweep, configs, "h100", 2)
    name = sweep.arms[0].jobs["stage1"]
    planned = plan.make_plan(configs[name].config, "h100", 64, devices=2)
    assert costs[name].flops == pytest.approx(10 * planned["step_flops"], rel=1e-12)
    assert costs[name].hours == pytest.approx(planned["run_seconds"] / 3600, rel=1e-12)
    assert costs[name].device_hours == 2 * costs[name].hours
    assert costs[name].peak_bytes == planned["peak_bytes"] and costs[name].fits


def test_equal_shapes_share_a_plan_that_is_kept(tmp_path, fake_plans):
    sweep, configs = expand_arms(tmp_path, make_arm("a"), make_arm("b", seed=1, total_steps=30))
    costs = cost.predict_costs(sweep, configs, "h100", 2, tmp_path)
    assert fake_plans == [(32, 64, 2)]
    first, second = (costs[arm.jobs["stage1"]] for arm in sweep.arms)
    assert (first.hours, second.hours) == (0.1, pytest.approx(0.3))
    assert cost.predict_costs(sweep, configs, "h100", 2, tmp_path) == costs
    assert len(fake_plans) == 1
    cost.predict_costs(sweep, configs, "h100", 1, tmp_path)
    assert len(fake_plans) == 2
    text = cost.describe_costs(sweep, configs, costs)
    total = sum(c.device_hours for c in costs.values())
    assert f"4 jobs: {sum(c.flops for c in costs.values()) / 1e18:.4g} EFLOP, {total:.4g}" in text


def test_other_shapes_are_planned_again(tmp_path, fake_plans):
    options = ("predictor.width", 32), ("batch_size", 8), ("mask.ratio", 0.5), ("remat", "full")
    arms = [make_arm("a"), *(make_arm(name, **{name: value}) for name, value in options)]
    # Options of rounding do not change the hash of a job, so the last arm is not a job.
    sweep, configs = expand_arms(tmp_path, *arms)
    cost.predict_costs(sweep, configs, "h100", 1)
    assert len(fake_plans) == 4
    name = sweep.arms[0].jobs["stage1"]
    configs[name].config.remat = "full"
    cost.predict_costs(sweep, configs, "h100", 1)
    assert len(fake_plans) == 8


def test_an_evaluation_encodes_all_videos_once(tmp_path):
    sweep, configs = expand_arms(tmp_path, make_arm("a"))
    used = sweep.arms[0].jobs
    found = cost.predict_evaluation(configs[used["probe"]], configs[used["stage1"]], "h100", 1)
    run = configs[used["stage1"]].config.copy_and_resolve_references()
    run.data.frames = run.encoder.frames  # the evaluation's default
    count = flops.count_target_encoder(run, flops.token_lengths(run))
    assert found.flops == (64 + 16) * count.forward
    assert configs[used["stage1"]].config.data.frames == 2


def test_heads_that_train_on_the_encoder_encode_the_videos_in_each_epoch(tmp_path):
    steps = chain(
        stage1="configs/stage1.py:tiny", probe="configs/eval/tasks/attentive_probe.py:tiny"
    )
    probe = {"train_manifest": VIDEOS, "val_manifest": "world:simple/val?videos=16"}
    found = []
    for augment in (False, True):
        overrides = {**probe, "attentive_probe.augment": augment, "attentive_probe.epochs": 5.0}
        arm = Arm("a", (steps[0], steps[1].with_overrides(overrides)))
        _, configs = expand_arms(tmp_path, arm)
        stage1, evaluation = configs.values()
        found.append(cost.predict_evaluation(evaluation, stage1, "h100", 1).flops)
    assert found[1] / found[0] == pytest.approx((5 * 64 + 16) / (64 + 16), rel=1e-12)


def test_settings_are_those_of_the_largest_job(tmp_path, fake_plans, monkeypatch):
    arms = [make_arm(str(batch), batch_size=batch) for batch in (64, 512, 256)]
    sweep, configs = expand_arms(tmp_path, *arms)
    costs = cost.predict_costs(sweep, configs, "h100", 1)

    def find_fit(config, device, devices, videos):
        assert (config.batch_size, device, devices, videos) == (512, "h100", 1, 64)
        return fitting.Fit({"accumulate": 8, "remat": "dots"}, {})

    monkeypatch.setattr(fitting, "find_fit", find_fit)
    sentence = r"2 of 6 jobs do not fit in the memory of 1 x h100 .*; they fit with "
    sentence += "--set=stage1.accumulate=8 --set=stage1.remat=dots$"
    with pytest.raises(UserError, match=sentence):
        cost.check_fit(configs, costs, "h100")
    monkeypatch.setattr(fitting, "find_fit", lambda *_: None)
    with pytest.raises(UserError, match="fit with more than 1 devices: increase --devices_per_job"):
        cost.check_fit(configs, costs, "h100")


@pytest.mark.slow
def test_jobs_that_do_not_fit_do_fit_with_the_settings(tmp_path, monkeypatch):
    monkeypatch.setitem(DEVICES, "small", DEVICES["h100"]._replace(memory=100e6))
    arms = make_arm("a", batch_size=512), make_arm("b", batch_size=1024)
    sweep, configs = expand_arms(tmp_path, *arms)
    costs = cost.predict_costs(sweep, configs, "small", 1)
    assert {configs[name].kind for name, c in costs.items() if not c.fits} == {Kind.TRAIN}
    with pytest.raises(UserError, match="2 of 4 jobs do not fit") as raised:
        cost.check_fit(configs, costs, "small")
    settings = re.findall(r"--set=(\S+)", str(raised.value))
    assert settings
    sweep, configs = expand_arms(tmp_path, *arms, settings=settings)
    cost.check_fit(configs, cost.predict_costs(sweep, configs, "small", 1), "small")


def test_a_damaged_file_of_plans_is_made_again(tmp_path, fake_plans):
    sweep, configs = expand_arms(tmp_path, make_arm("a"))
    for text in ("{damaged", json.dumps({"format": 0, "plans": {}})):
        (tmp_path / cost.PLANS).write_text(text)
        cost.predict_costs(sweep, configs, "h100", 1, tmp_path)
    assert len(fake_plans) == 2
    assert json.loads((tmp_path / cost.PLANS).read_text())["format"] == 1


def test_an_unknown_device_is_a_user_error(tmp_path):
    sweep, configs = expand_arms(tmp_path, make_arm("a"))
    with pytest.raises(UserError, match="--device=abacus must be one of"):
        cost.predict_costs(sweep, configs, "abacus", 1)


def test_costs_without_a_source_are_zero(tmp_path):
    probe = make_arm("a").steps[1].with_overrides({"checkpoint": str(tmp_path)})
    sweep, configs = expand_arms(tmp_path, Arm("a", (probe,)))
    (found,) = cost.predict_costs(sweep, configs, "h100", 1).values()
    assert dataclasses.replace(found, memory_bytes=0) == cost.Cost(0.0, 0.0, 0, 0.0, 1, True)


def test_a_step_with_the_sizes_of_its_source_is_planned_with_them(tmp_path):
    """The sizes of a chain are known before its first run is."""
    adapt = {"data.manifest": VIDEOS, "data.held_out": 4, "data.frames": 4}
    steps = chain(
        stage1="configs/stage1.py:tiny",
        adapt="configs/adapt.py",
        probe="configs/eval/tasks/linear_probe.py:tiny",
    )
    steps = (steps[0], steps[1].with_overrides(adapt), steps[2])
    sweep, configs = expand_arms(tmp_path, Arm("a", steps))
    found = configs[sweep.arms[0].jobs["adapt"]]
    first = configs[sweep.arms[0].jobs["stage1"]].config
    assert found.config.encoder == first.encoder and found.config.variant == "tiny"
    assert (found.config.data.frames, found.config.data.size) == (4, 32)
    command = sweep.jobs[sweep.arms[0].jobs["adapt"]].job.command
    assert not any("width" in part for part in command)  # the run copies them
    missing = load_step(Step("adapt", "configs/adapt.py", {"init_from": str(tmp_path / "a")}), None)
    assert missing.copy_sizes().config.encoder.width == 768
