"""Estimated time of the instructions of a compiled program.

TPU compilers write an estimate of cycles into the program. The time of other instructions is
estimated with a roofline from their matrix products and the bytes that they read and write, and
that of collectives from the bytes that a device sends.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from invnext_jax.planning import collectives
from invnext_jax.planning.devices import Device
from invnext_jax.planning.program import Array, Instruction, Program, array_bytes

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SYNC = '"is_sync":true'
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Instructions that take no time of their own.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "replica-id", "opt-barrier"}
_FREE |= {"async-update", "send", "recv"}  # they overlap with computation
_FREE_TARGETS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"}
_FREE_TARGETS |= {"ConcatBitcast"}  # one array from the parts that were copied to fast memory
_READ_PARTS = ("dynamic-slice", "slice", "gather")  # they read only a part of their first operand
_SPLASH = {"dq": 6, "dkv": 8, "fwd": 4}  # FLOPs per pair of tokens and unit of the head width


BASES = ("compiler", "roofline", "link", "overlapped")


class Cost(NamedTuple):
    """Estimated time of an instruction.

    Attributes:
      instruction: the instruction.
      times: number of executions in one run of the program.
      seconds: time of all executions.
      basis: "compiler" for the compiler's estimate, "roofline", "link" for a collective that other
        instructions wait for, or "overlapped" for a collective that is executed at the same time.
    """

    instruction: Instruction
    times: int
    seconds: float
    basis: str


def estimate_costs(program: Program, device: Device, devices: int, link: float) -> list[Cost]:
    """Returns the estimated time of all instructions that take time.

    Args:
      program: the compiled program of one device.
      device: the device.
      devices: number of devices.
      link: bytes/s that a device sends to others.
    """
    costs = []
    for computation, times in program.scheduled.items():
        arrays = program.operands(computation)
        for instruction in program.computations[computation]:
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            seconds, basis = _seconds(program, instruction, arrays, device, devices, link)
            if seconds:
                costs.append(Cost(instruction, times, times * seconds, basis))
    return costs


def _seconds(program, instruction, arrays, device, devices, link) -> tuple[float, str]:
    """Returns the time of one execution and its basis."""
    if collective := collectives.read_collective(program, instruction, 1, devices):
        waits = not instruction.opcode.endswith("-start") or _SYNC in instruction.attributes
        return collective.sent_bytes / link, "link" if waits else "overlapped"
    if instruction.opcode.endswith("-start"):  # a copy that overlaps with computation
        return 0.0, "overlapped"
    if device.clock and (match := _CYCLES.search(instruction.attributes)):
        return int(match[1]) / device.clock, "compiler"
    inputs = [arrays.get(name, ()) for name in instruction.operands]
    flops = count_flops(program, instruction, inputs)
    moved = count_bytes(program, instruction, inputs)
    return max(device.product_seconds(flops), moved / device.bandwidth), "roofline"


def count_flops(
    program: Program, instruction: Instruction, inputs: list[tuple[Array, ...]]
) -> dict[str, float]:
    """Returns the FLOPs of matrix products in one execution, by dtype.

    Args:
      program: the program of the instruction.
      instruction: an instruction.
      inputs: the arrays of each operand.
    """
    flops = {"float32": 0.0, "bfloat16": 0.0}
    if instruction.opcode == "custom-call":
        flops["bfloat16"] += _kernel_flops(instruction, inputs)
        if "__cublas" in _target(instruction):
            _add_product(flops, instruction, inputs, "lhs_contracting_dimensions")
    elif instruction.opcode == "dot":
        _add_product(flops, instruction, inputs, "lhs_contracting_dims")
    for name in instruction.called if instruction.opcode == "fusion" else ():
        arrays = program.operands(name)
        for inner in program.computations[name]:
            inner_inputs = [arrays.get(operand, ()) for operand in inner.operands]
            for dtype, count in count_flops(program, inner, inner_inputs).items():
                flops[dtype] += count
    return flops


def _add_product(flops, instruction, inputs, key: str) -> None:
    if not instruction.results or not inputs or not inputs[0]:
        return
    match = re.search(rf'{key}"?[=:]\s*[{{\[]([\d,"\s]*)', instruction.attributes)
    axes = [int(axis) for axis in re.findall(r"\d+", match[1])] if match else []
    dtype, shape = inputs[0][0]
    summed = math.prod(shape[axis] for axis in axes if axis < len(shape))
    name = "float32" if dtype == "f32" else "bfloat16"
    flops[name] += 2.0 * math.prod(instruction.results[0][1]) * summed


def _kernel_flops(instruction: Instruction, inputs: list[tuple[Array, ...]]) -> float:
    """Returns the FLOPs of an attention kernel; 0 for other custom calls."""
    name = attention_kernel(instruction)
    if name.startswith("splash_"):
        return _splash_flops(instruction, inputs, name.removeprefix("splash_"))
    return _cudnn_flops(instruction, inputs) if name else 0.0


def _cudnn_flops(instruction, inputs) -> float:
    shape = re.search(r'"dimensions": ?\[([^\]]*)\]', instruction.attributes)
    if not shape or not inputs or not inputs[0]:
        return 0.0
    b, h, n, m = (int(size) for size in re.findall(r"\d+", shape[1]))
    window = re.search(r'"sliding_window_length": ?(\d+)', instruction.attributes)
    m = min(m, int(window[1]) or m) if window else m
    products = 5 if "Backward" in _target(instruction) else 2
    return 2.0 * products * b * h * n * m * inputs[0][0][1][-1]


def _splash_flops(instruction, inputs, kind: str) -> float:
    """Counts the tiles of the grid, which omits tiles outside local windows."""
    arrays = [arrays[0][1] for arrays in inputs if arrays]
    sequences = [shape for shape in arrays if len(shape) >= 3 and shape[-1] >= 64]
    if len(sequences) < 2:
        return 0.0
    *batch, e, n = sequences[0]  # as in `fused_attention.run_splash`
    m = sequences[1][-1]
    return _SPLASH[kind] * math.prod(batch) * n * _reached_keys(instruction, kind, arrays, m) * e


def _reached_keys(instruction, kind: str, arrays, m: int) -> int:
    """Returns the number of keys in the tiles of a query."""
    options = re.search(r'"xprof_metadata":"(\{.*?\})"', instruction.attributes)
    if not options:
        return m
    blocks = json.loads(options[1].replace('\\"', '"'))
    block = blocks.get({"fwd": "block_kv"}.get(kind, f"block_kv_{kind}")) or m
    grid = next((shape for shape in arrays if len(shape) == 3), None)
    return min(m, grid[-1] * block) if grid and math.prod(grid) > 1 else m


def attention_kernel(instruction: Instruction) -> str:
    """Returns the name of the attention kernel that an instruction executes, or ""."""
    target = _target(instruction)
    if target.startswith("__cudnn$fmha"):
        return target.removeprefix("__cudnn$")
    if target == "tpu_custom_call" and "splash" in instruction.op_name:
        return next((f"splash_{kind}" for kind in _SPLASH if _is_splash(instruction, kind)), "")
    return ""


def _is_splash(instruction: Instruction, kind: str) -> bool:
    return f"splash_mha_{kind}" in instruction.op_name


def _target(instruction: Instruction) -> str:
    match = _TARGET.search(instruction.attributes)
    return match[1] if match else ""


def count_bytes(
    program: Program, instruction: Instruction, inputs: list[tuple[Array, ...]]
) -> float:
    """Returns the bytes that one execution reads and writes.

    Slices of an operand count instead of the operand, if the instruction reads or overwrites only
    these slices. The arguments are those of `count_flops`.
    """
    results = array_bytes(instruction.results)
    if instruction.opcode == "custom-call" and _target(instruction) in _FREE_TARGETS:
        return 0
    if instruction.opcode in _READ_PARTS:
        return 2 * results
    if instruction.opcode == "dynamic-update-slice":
        return 2 * array_bytes(inputs[1])
    if instruction.opcode != "fusion" or instruction.called[0] not in program.computations:
        return results + sum(map(array_bytes, inputs))
    body = program.computations[instruction.called[0]]
    return _read_bytes(body) + _written_bytes(body)


def _read_bytes(body: Iterable[Instruction]) -> int:
    users: dict[str, list[Instruction]] = {i.name: [] for i in body}
    for instruction in body:
        for position, name in enumerate(instruction.operands):
            if name in users:
                first = position == 0
                users[name].append(instruction if first else instruction._replace(opcode=""))
    total = 0
    for instruction in body:
        if instruction.opcode == "parameter":
            readers = _skip_bitcasts(users, instruction.name)
            opcodes = {reader.opcode for reader in readers}
            if opcodes and opcodes <= {*_READ_PARTS, "dynamic-update-slice"}:
                parts = [r for r in readers if r.opcode in _READ_PARTS]
                total += sum(array_bytes(reader.results) for reader in parts)
            else:
                total += array_bytes(instruction.results)
    return total


def _skip_bitcasts(users: dict[str, list[Instruction]], name: str) -> list[Instruction]:
    readers = []
    for reader in users[name]:
        is_bitcast = reader.opcode in ("bitcast", "copy")
        readers += _skip_bitcasts(users, reader.name) if is_bitcast else [reader]
    return readers


def _written_bytes(body: Iterable[Instruction]) -> int:
    by_name = {i.name: i for i in body}
    root = next((i for i in body if i.is_root), None)
    if root is None:
        return 0
    outputs = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for output in outputs:
        while output.opcode in ("bitcast", "copy") and output.operands[0] in by_name:
            output = by_name[output.operands[0]]
        if output.opcode == "dynamic-update-slice" and output.operands[1] in by_name:
            output = by_name[output.operands[1]]
        total += array_bytes(output.results)
    return total
