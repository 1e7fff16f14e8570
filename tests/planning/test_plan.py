import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import pytest
from config_cases import small
from processes import FAST_TO_COMPILE

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.errors import UserError
from invnext_jax.planning import compiled_step, plan, plan_table
from invnext_jax.planning.devices import DEVICES

ROOT = pathlib.Path(__file__).parents[2]


def test_held_bytes_are_counted_by_hand(one_device):
    result = plan.make_plan(small(), "h200")
    params = 4 * sum(result["parameters"].values())
    held = result["held_bytes"]
    assert held["parameters"] == held["gradients"] == params
    assert held["optimizer"] == pytest.approx(2 * params, rel=1e-3)  # two moments and counters
    assert held["frozen"] == 4 * sum(result["frozen_parameters"].values())
    assert held["cast"] == 0  # float32
    assert result["sent_bytes"] == {"data": 0, "fsdp": 0, "tensor": 0, "sequence": 0}
    free = 0.92 * DEVICES["h200"].memory - sum(held.values())
    assert result["clips_that_fit_a_device"] == free // result["activation_bytes_per_clip"]
    assert "largest batch" in plan_table.format_plan(result)


def test_eight_devices_hold_an_eighth_each_and_send_parameters():
    result = plan.make_plan(small(fsdp=8), "v5p")
    params, frozen = (
        4 * sum(result[name].values()) for name in ("parameters", "frozen_parameters")
    )
    # Arrays with an indivisible dimension are replicated.
    assert params / 8 <= result["held_bytes"]["parameters"] <= 1.1 * params / 8
    # For each of two masks, parameters are gathered twice and their gradients are reduced once.
    assert result["sent_bytes"]["fsdp"] == pytest.approx(7 / 8 * (6 * params + frozen))
    assert result["sent_bytes"]["data"] == 0


def test_exchanged_heads_are_sent_in_part():
    config = small(sequence=8)
    config.encoder.heads = config.predictor.heads = 8
    gathered = plan.make_plan(config, "v5p")
    config.sequence_attention = "all_to_all"
    exchanged = plan.make_plan(config, "v5p")
    # Four arrays, of which a device sends its part, in place of two whole ones.
    assert exchanged["sent_bytes"]["sequence"] == gathered["sent_bytes"]["sequence"] * 4 / 2 / 8
    bytes_per_clip = [result["activation_bytes_per_clip"] for result in (gathered, exchanged)]
    tokens = config.data.frames * (config.data.size // config.encoder.patch) ** 2
    tokens += config.encoder.class_tokens
    whole = 4 * tokens * max(config.encoder.width, config.predictor.width) * 4  # float32
    assert bytes_per_clip[0] - bytes_per_clip[1] == pytest.approx(whole * 7 / 8)


def test_more_remat_needs_less_memory_and_more_flops(one_device):
    plans = [plan.make_plan(small(remat), "a100") for remat in ("none", "dots", "full")]
    bytes_per_clip = [result["activation_bytes_per_clip"] for result in plans]
    recomputed = [result["recomputed_flops"] for result in plans]
    assert bytes_per_clip[0] > bytes_per_clip[1] > bytes_per_clip[2]
    assert 0 == recomputed[0] < recomputed[1] < recomputed[2]


def test_unknown_device_and_indivisible_batch_are_user_errors():
    with pytest.raises(UserError, match="--device=tpu9 must be one of a100"):
        plan.make_plan(small(data=8), "tpu9")
    config = small(data=8)
    config.accumulate = 3
    with pytest.raises(UserError, match="batch_size=8 must be divisible by config.accumulate"):
        plan.make_plan(config, "h200")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data.size": 33}, "config.data.size=33 must be divisible by"),
        ({"accumulate": 0}, "config.accumulate=0 must be at least 1"),
        ({"predictor.kind": "foo"}, "predictor.kind"),
        ({"remat": "some"}, "config.remat='some' must be one of"),
    ],
)
def test_invalid_config_is_a_user_error(change, sentence):
    config = small(data=8)
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=sentence):
        plan.make_plan(config, "h200")


def test_plan_needs_no_files_and_no_kernels_of_other_machines():
    config = small(data=8)
    config.attention, config.data.manifest, config.init_from = "splash", "", ""
    assert plan.make_plan(config, "v5p")["fits"]


@pytest.mark.slow
def test_planned_activation_memory_is_close_to_that_of_xla(one_device):
    config = small()
    config.encoder.update(width=256, mlp_width=1024, heads=2)
    config.predictor.update(width=256, mlp_width=1024)
    per_clip = plan.make_plan(config, "h200")["activation_bytes_per_clip"]
    temporary = []
    for batch in (16, 32):
        config.batch_size = batch
        temporary.append(
            compiled_step.describe_memory(compiled_step.compile_step(config))["xla_temporary_bytes"]
        )
    assert 0.5 < (temporary[1] - temporary[0]) / 16 / per_clip < 1.5


@pytest.mark.slow
def test_base_stage_2_of_32_frames_fits_32_clips_on_an_h200(one_device):
    config = stage2_config.get_config("base")
    config.batch_size = 32
    assert plan.make_plan(config, "h200")["clips_that_fit_a_device"] >= 32


@pytest.mark.slow
@pytest.mark.parametrize("configs", [stage1_config, stage2_config])
def test_1b_fits_eight_h200(configs):
    config = configs.get_config("1b")
    config.batch_size = 64
    config.mesh.update(data=1, fsdp=len(jax.devices()))
    assert plan.make_plan(ml_collections.ConfigDict(config), "h200")["fits"]


@pytest.mark.slow
def test_command_prints_a_table_and_a_json_line():
    arguments = ["--config=configs/stage1.py:tiny", "--device=v6e", "--mesh=fsdp=2,data=2"]
    command = [sys.executable, "launch/plan.py", *arguments, "--json", "--compile"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_TO_COMPILE}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == 4
    assert result["xla_collectives"]["all-reduce"]["times"] > 0
    assert "4 x v6e (data 2, fsdp 2)" in done.stdout
