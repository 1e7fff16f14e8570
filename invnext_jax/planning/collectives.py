"""Collective operations of a compiled program: their kinds, counts and sizes in bytes."""

import math
import re
from typing import NamedTuple

from invnext_jax.planning import program as program_lib
from invnext_jax.planning.program import Array, Instruction, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# TPU compilers write a reduce-scatter as a fusion of an all-reduce and a slice, with this name.
_REDUCE_SCATTER = "all-reduce-scatter"


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      shapes: (type, dimensions) of each output array on one device.
      times: number of executions in one run of the program, including loop iterations.
      devices: number of devices in one group.
      source: name of the operation in the model; "" if the compiler did not record it.
    """

    kind: str
    shapes: tuple[Array, ...]
    times: int
    devices: int
    source: str

    @property
    def result_bytes(self) -> int:
        """Bytes of the output on one device."""
        return program_lib.array_bytes(self.shapes)

    @property
    def sent_bytes(self) -> int:
        """Bytes that a device sends in one run of the program, assuming ring algorithms."""
        share = (self.devices - 1) / max(self.devices, 1)
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.devices - 1}
        if self.kind.startswith("collective"):
            return self.times * self.result_bytes
        return round(self.times * self.result_bytes * factor.get(self.kind, share))


def read_collectives(program: Program, devices: int) -> list[Collective]:
    """Returns the collectives of a compiled program.

    Args:
      program: the compiled program.
      devices: number of devices; the group size of collectives without replica groups.
    """
    return [
        collective
        for name, times in program.executions.items()
        if times and not name.startswith(_REDUCE_SCATTER)
        for instruction in program.computations[name]
        if (collective := read_collective(program, instruction, times, devices))
    ]


def read_collective(
    program: Program, instruction: Instruction, times: int, devices: int
) -> Collective | None:
    """Returns the collective that an instruction executes or starts, or None.

    Args:
      program: the program of the instruction.
      instruction: an instruction.
      times: number of executions.
      devices: see `read_collectives`.
    """
    kind, shapes = instruction.opcode.removesuffix("-start"), instruction.results
    if kind == "fusion" and "".join(instruction.called[:1]).startswith(_REDUCE_SCATTER):
        body = program.computations[instruction.called[0]]
        reduce = next(inner for inner in body if inner.opcode == "all-reduce")
        group = _group_size(reduce.attributes, devices)
        return Collective("reduce-scatter", shapes, times, group, instruction.op_name)
    if kind not in KINDS:
        return None
    if kind != instruction.opcode and kind != "all-reduce":
        # The outputs are the operands, the results and, for some kinds, scalars for the hardware.
        shapes = tuple(array for array in shapes if array[1] or not kind.startswith("collective"))
        shapes = shapes[len(shapes) // 2 :]
    group = _group_size(instruction.attributes, devices)
    return Collective(kind, shapes, times, group, instruction.op_name)


def _group_size(attributes: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    # Named mesh axes: the group spans the axes listed in braces.
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
