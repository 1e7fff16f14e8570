import json
import pathlib
import shlex
import subprocess
import sys

import pytest
from config_cases import small

from invnext_jax.planning import devices, fitting, memory, plan

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plans():
    return {
        remat: plan.make_plan(small(remat), "h100", devices=1) for remat in ("none", "dots", "full")
    }


@pytest.fixture
def make_device(monkeypatch, plans):
    """Returns a function that adds a device with the given usable memory.

    Its bandwidths are so high that matrix products determine the time of a step.
    """

    def activation_bytes(shapes):  # computing them takes seconds each time
        per_clip = plans[shapes.config.remat]["activation_bytes_per_clip"]
        return memory.ActivationBytes(per_clip, per_clip)

    def make(usable):
        device = devices.DEVICES["h100"]
        fast = device._replace(memory=usable / 0.92, bandwidth=1e18, link=1e18)
        monkeypatch.setitem(devices.DEVICES, "toy", fast)

    monkeypatch.setattr(memory, "activation_bytes", activation_bytes)
    return make


def replan(config, options, count):
    """Plans the run from scratch with other options."""
    config.update_from_flattened_dict(options)
    return plan.make_plan(config, "toy", devices=count)


def held_bytes(result, accumulated=True):
    held = result["held_bytes"]
    return sum(held.values()) + accumulated * held["gradients"]


def test_least_accumulation_that_fits_is_found(make_device, plans):
    per_clip = plans["none"]["activation_bytes_per_clip"]
    make_device(held_bytes(plans["none"]) + 3.5 * per_clip)
    assert not replan(small(), {}, 1)["fits"]
    fit = fitting.find_fit(small(), "toy", 1)
    assert fit.options == {"accumulate": 4}  # 8 clips in parts of 2
    assert fit.plan["fits"] and replan(small(), fit.options, 1)["fits"]
    assert not replan(small(), {"accumulate": 2}, 1)["fits"]


def test_remat_changes_only_if_no_clip_fits_without(make_device, plans):
    small_clip, large_clip = (
        plans[remat]["activation_bytes_per_clip"] for remat in ("full", "dots")
    )
    assert small_clip < large_clip
    make_device(held_bytes(plans["none"]) + (small_clip + large_clip) / 2)
    fit = fitting.find_fit(small(), "toy", 1)
    assert fit.options["remat"] == "full"
    assert replan(small(), fit.options, 1)["fits"]


def test_parameters_are_split_if_they_do_not_fit_on_each_device(make_device, plans):
    make_device(held_bytes(plans["none"]) / 2 + plans["none"]["activation_bytes_per_clip"])
    assert not replan(small(data=8), {}, 8)["fits"]
    fit = fitting.find_fit(small(data=8), "toy", 8)
    assert fit.plan["mesh"]["fsdp"] > 1 and fit.plan["mesh"]["tensor"] == 1
    assert fit.plan["held_bytes"]["parameters"] < plans["none"]["held_bytes"]["parameters"]
    assert replan(small(data=8), fit.options, 8)["fits"]


def test_more_devices_are_tried_and_nothing_is_found_if_nothing_fits(make_device, plans):
    make_device(held_bytes(plans["none"]) / 2 + plans["none"]["activation_bytes_per_clip"])
    assert fitting.find_fit(small(), "toy", 1) is None
    fit = fitting.find_fit(small(), "toy", 1, max_devices=8)
    assert 1 < fit.plan["devices"] <= 8 and fit.plan["fits"]
    make_device(1e5)
    assert fitting.find_fit(small(), "toy", 1, max_devices=4) is None


def test_a_run_that_fits_is_not_changed(make_device):
    make_device(1e12)
    assert fitting.find_fit(small(), "toy", 1).options == {}


@pytest.mark.slow
def test_command_ends_with_a_command_that_fits():
    command = [sys.executable, "launch/plan.py", "--config=configs/stage2.py:tiny", "--json"]
    command += ["--device=v5e", "--mesh=fsdp=2", "--config.batch_size=65536", "--config.seed=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, suggestion, result = done.stdout.splitlines()
    assert json.loads(result)["fitting_command"] == suggestion
    python, script, *flags = shlex.split(suggestion)
    assert (python, script) == ("python", "launch/main.py")
    assert "--config.seed=3" in flags and "--config.mesh.fsdp=2" in flags
    flags = [flag for flag in flags if not flag.startswith("--workdir")]
    command = [sys.executable, "launch/plan.py", "--device=v5e", "--json", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])["fits"], done.stderr
