import importlib.util

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError
from invnext_jax.models import attention
from invnext_jax.planning import program, targets
from invnext_jax.training import mesh as mesh_lib


def test_devices_of_a_topology_are_counted():
    assert targets.count_devices("2x2x1") == 4
    assert targets.count_devices("1x8") == 8
    for topology in ("8", "2x", "2x0", "2x2x2x2", "v5p:2x2", "", "99999x1"):
        with pytest.raises(UserError, match="must be the axes of a TPU slice"):
            targets.count_devices(topology)


def test_devices_without_compiler_are_refused():
    with pytest.raises(UserError, match="--device=a100 has no compiler for --topology: use one of"):
        targets.describe_devices("a100", "1x8")


@pytest.mark.parametrize(("device", "extra"), [("v5p", "aot-tpu"), ("h100", "aot-gpu")])
def test_missing_compiler_is_an_error_that_says_what_to_install(monkeypatch, device, extra):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match=f"is not installed: run pip install -e '.\\[{extra}\\]'"):
        targets.describe_devices(device, "2x2")


def _compile_attention(devices):
    """Compiles the gradient of an attention layer with fewer queries than keys."""
    axes = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1})
    mesh = mesh_lib.make_mesh(axes, devices)
    shapes = [
        jax.ShapeDtypeStruct(
            (mesh.size, n, 2, 64), jnp.bfloat16, sharding=NamedSharding(mesh, P(("data", "fsdp")))
        )
        for n in (126, 1028, 1028)
    ]

    def product(q, k, v):
        return jnp.sum(attention.attend(q, k, v).astype(jnp.float32))

    with mesh_lib.mesh_rules(mesh), attention.record_choices() as choices:
        compiled = jax.jit(jax.grad(product, (0, 1, 2))).lower(*shapes).compile()
    return compiled, choices


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra aot-tpu")
def test_tpu_compiler_runs_the_fused_kernel():
    compiled, choices = _compile_attention(targets.describe_devices("v5e", "2x2"))
    assert {choice.kernel for choice in choices} == {"splash"}
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') >= 3
    assert program.read_program(compiled.as_text()).unknown_loops == []


@pytest.mark.skipif(not importlib.util.find_spec("jax_plugins"), reason="needs the extra aot-gpu")
def test_gpu_compiler_runs_the_fused_kernel():
    compiled, choices = _compile_attention(targets.describe_devices("h100", "1x2"))
    assert {choice.kernel for choice in choices} == {"cudnn"}
    assert "__cudnn$fmhaSoftmaxBackward" in compiled.as_text()
