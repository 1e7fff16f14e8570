import json
import types

import pytest
from config_cases import small

from invnext_jax.errors import UserError
from invnext_jax.models.attention import Choice
from invnext_jax.planning import compiled_step, plan, plan_table, program

MESH = types.SimpleNamespace(shape={"tensor": 2, "sequence": 1})
LOGITS = """\
HloModule logits

ENTRY %main (a: f32[2,4,30,300]) -> f32[2,2,30,300] {
  %a = f32[2,4,30,300]{3,2,1,0} parameter(0)
  %one = f32[2,2,30,300]{3,2,1,0} copy(%a)
  %two = bf16[30,300]{1,0} copy(%a)
  %three = bf16[4,300,30]{2,1,0} copy(%a)
  %four = f32[2,300,301]{2,1,0} copy(%a)
  ROOT %five = f32[3,30,300]{2,1,0} copy(%a)
}
"""


def find(queries, keys):
    choice = Choice("xla", "", queries, keys, 4, 64, None, "float32")
    parsed = program.read_program(LOGITS)
    return [row["shape"] for row in compiled_step.find_logits(parsed, [choice], MESH)]


def test_logits_have_axes_of_queries_keys_and_heads_of_a_device():
    assert find(30, 300) == ["f32[2,2,30,300]", "bf16[4,300,30]"]
    assert find(300, 300) == []
    assert find(2, 30) == []  # too few


def test_kernel_of_another_platform_is_an_error(one_device):
    config = small()
    config.attention = "splash"
    with pytest.raises(UserError, match="config.attention='splash' needs a TPU"):
        compiled_step.compile_step(config)


def test_description_of_a_compiled_step(one_device):
    config = small()
    step = compiled_step.compile_step(config)
    result = compiled_step.describe_memory(step) | compiled_step.describe_program(step, "v5p")
    assert json.loads(json.dumps(result)) == result
    assert {choice["kernel"] for choice in result["xla_attention"]} == {"xla"}
    assert result["xla_unknown_loops"] == 0
    assert result["xla_kernels"] == {}
    seconds = result["xla_step_seconds"]
    assert 0 < result["xla_mfu"] < 1
    assert 0 < result["xla_instructions"][0]["seconds"] < seconds
    assert sum(row["share"] for row in result["xla_instructions"]) <= 1
    assert any("invnext_jax/" in row["source"] for row in result["xla_instructions"])
    table = plan_table.format_plan(plan.make_plan(config, "v5p") | result)
    for part in ("of the plan", "queries", "Arrays of attention logits:", "Estimated time of a"):
        assert part in table


def test_auto_quantization_is_that_of_the_described_devices(monkeypatch):
    formats = []

    def stop(config, devices):
        formats.append(config.quantize_frozen)
        raise UserError(f"stopped before {len(devices)} device is used")

    monkeypatch.setattr(compiled_step, "make_shapes", stop)
    config = small()
    config.quantize_frozen = "auto"
    for platform, kind in (("tpu", "TPU v6 lite"), ("gpu", "NVIDIA H100 80GB HBM3")):
        device = types.SimpleNamespace(platform=platform, device_kind=kind)
        with pytest.raises(UserError, match="stopped"):
            compiled_step.compile_step(config, [device])
    assert formats == ["int8", "float8"]
