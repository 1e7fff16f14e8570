"""The training step compiled for simulated CPU devices, or by the compiler of a TPU or GPU.

Shape key: b clips.
"""

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from invnext_jax.models import attention, blockwise_attention, dot_general
from invnext_jax.planning import collectives, costs
from invnext_jax.planning import flops as flops_lib
from invnext_jax.planning import plan as plan_lib
from invnext_jax.planning import program as program_lib
from invnext_jax.planning.devices import DEVICES
from invnext_jax.planning.shapes import Shapes, make_shapes
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import optimizer

_PACKAGE = __name__.partition(".")[0]
_REPEATED = re.compile(r"jit\(train_step\)/|while/body/|closed_call/|checkpoint/")
_FEWEST_LOGITS = 2**12  # for a head; arrays with fewer are small, and often have the same axes
_LISTED = 10  # number of instructions and of attention logits in a description


class CompiledStep(NamedTuple):
    """A compiled training step.

    Attributes:
      compiled: the output of JAX's `compile`.
      text: the compiled program as text.
      program: the parsed text.
      shapes: the arguments of the step.
      choices: the attention kernel of each layer.
      seconds: time of tracing and compilation.
    """

    compiled: Any
    text: str
    program: program_lib.Program
    shapes: Shapes
    choices: list[attention.Choice]
    seconds: float


def compile_step(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> CompiledStep:
    """Compiles the step of a run.

    Args:
      config: the run's config.
      devices: the devices, such as the output of `targets.describe_devices`; None for the available
        devices.

    Raises:
      UserError: an option is invalid, or does not match the devices.
    """
    start, kernel = time.time(), config.attention
    config, _ = plan_lib.check_config(config)
    config = ml_collections.ConfigDict(config)
    config.attention = kernel
    attention.check_config(config, devices[0].platform if devices else None)
    if config.quantize_frozen == dot_general.AUTO:
        config.quantize_frozen = dot_general.select_format((devices or jax.devices())[0])
    shapes = make_shapes(ml_collections.FrozenConfigDict(config), devices)
    mesh, sharding = shapes.mesh, mesh_lib.batch_sharding(shapes.mesh)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype, sharding=sharding)
        for name, x in shapes.clip.items()
    }
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    key, schedule = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=mesh_lib.replicated(mesh)
        ),
        (jax.eval_shape(lambda: jax.random.key(0)), schedule),
    )
    with attention.record_choices() as choices:
        compiled = shapes.training.compile_step(
            mesh, shapes.state, shapes.frozen, batch, key, schedule
        )
    seconds, text = time.time() - start, compiled.as_text()
    return CompiledStep(compiled, text, program_lib.read_program(text), shapes, choices, seconds)


def describe_memory(step: CompiledStep) -> dict[str, Any]:
    """Returns the bytes of a device according to the compiler, and the collectives by kind.

    On CPUs, attention is not fused and buffers are laid out differently. The memory use is
    therefore only useful to check plans of small models. The collectives are those that the
    partitioner chose.

    Returns:
      A JSON-compatible dict.
    """
    analysis = step.compiled.memory_analysis()
    used = collectives.read_collectives(step.program, step.shapes.mesh.size)
    return {
        "xla_argument_bytes": analysis.argument_size_in_bytes,
        "xla_temporary_bytes": analysis.temp_size_in_bytes,
        "xla_collectives": {
            kind: {
                "times": sum(c.times for c in used if c.kind == kind),
                "sent_bytes": sum(c.sent_bytes for c in used if c.kind == kind),
            }
            for kind in sorted({c.kind for c in used})
        },
    }


def describe_program(step: CompiledStep, device_name: str) -> dict[str, Any]:
    """Describes a step that was compiled for `targets.describe_devices`.

    Args:
      step: the compiled step.
      device_name: a name in `devices.DEVICES`.

    Returns:
      A JSON-compatible dict, with bytes per device and seconds.
    """
    device, mesh, program = DEVICES[device_name], step.shapes.mesh, step.program
    link = device.link if mesh.size <= device.node else device.network
    found = costs.estimate_costs(program, device, mesh.size, link)
    seconds = {basis: sum(c.seconds for c in found if c.basis == basis) for basis in costs.BASES}
    total = sum(seconds.values()) - seconds["overlapped"]
    config = step.shapes.config
    counts = step.shapes.training.stage.count_flops(config)
    flops = flops_lib.split_flops(counts, config.batch_size)
    analysis = step.compiled.memory_analysis()
    found = [cost for cost in found if cost.basis != "overlapped"]
    found.sort(key=lambda cost: -cost.seconds)
    return {
        "xla_compile_seconds": step.seconds,
        "xla_peak_bytes": getattr(analysis, "peak_memory_in_bytes", 0),
        "xla_attention": [choice._asdict() for choice in sorted(set(step.choices), key=str)],
        "xla_kernels": _count_kernels(program),
        "xla_logits": find_logits(program, step.choices, mesh)[:_LISTED],
        "xla_seconds": seconds,
        "xla_unknown_loops": len(program.unknown_loops),
        "xla_step_seconds": total,
        "xla_mfu": device.product_seconds(flops) / (mesh.size * total),
        "xla_instructions": [_describe_cost(program, cost, total) for cost in found[:_LISTED]],
    }


def _describe_cost(program: program_lib.Program, cost: costs.Cost, total: float) -> dict[str, Any]:
    instruction = cost.instruction
    return {
        "name": instruction.name,
        "operation": _REPEATED.sub("", program.op_name(instruction)),
        "source": program.source(instruction, _PACKAGE),
        "times": cost.times,
        "seconds": cost.seconds,
        "share": cost.seconds / total,
        "basis": cost.basis,
    }


def _count_kernels(program: program_lib.Program) -> dict[str, int]:
    """Returns the executions of attention kernels in one step, by name."""
    counts: dict[str, int] = {}
    for instruction, times in program.instructions():
        if name := costs.attention_kernel(instruction):
            counts[name] = counts.get(name, 0) + times
    return dict(sorted(counts.items()))


def find_logits(
    program: program_lib.Program, choices: Sequence[attention.Choice], mesh: Any
) -> list[dict[str, Any]]:
    """Returns the arrays of a program that may hold attention logits, largest first.

    These are arrays with an axis of all keys, an axis of all queries of a device or of one block,
    and other axes whose product is divisible by the number of heads of a device. A head must have
    at least 4,096 logits.

    Args:
      program: the compiled program.
      choices: the attention layers of the program.
      mesh: the mesh of the run.
    """
    layers = set()
    for choice in choices:
        heads = math.ceil(choice.heads / mesh.shape["tensor"])
        rows = {choice.queries, math.ceil(choice.queries / mesh.shape["sequence"])}
        rows |= {blockwise_attention.block_length(n, choice.keys) for n in rows}
        many = {n for n in rows if n > 1 and n * choice.keys >= _FEWEST_LOGITS}
        layers |= {(n, choice.keys, heads) for n in many}
    found = {}
    for instruction, times in program.instructions():
        if instruction.opcode in ("parameter", "get-tuple-element", "tuple", "while", "bitcast"):
            continue
        for dtype, shape in instruction.results:
            if any(_holds_logits(shape, *layer) for layer in layers):
                row = found.setdefault((dtype, shape), {"times": 0})
                row["times"] += times
                row["source"] = row.get("source") or program.source(instruction, _PACKAGE)
    rows = [
        {
            "shape": f"{dtype}[{','.join(map(str, shape))}]",
            "bytes": program_lib.array_bytes(((dtype, shape),)),
            **row,
        }
        for (dtype, shape), row in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _holds_logits(shape: tuple[int, ...], n: int, m: int, heads: int) -> bool:
    rest = list(shape)
    for size in (n, m):
        if size not in rest:
            return False
        rest.remove(size)
    return len(rest) > 0 and math.prod(rest) % heads == 0
