"""Collective operations of a compiled program: their kinds, counts and sizes in bytes."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_BITS = {
    "pred": 8,
    "bf16": 16,
    "c64": 64,
    "c128": 128,
}  # other names contain the number of bits
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


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
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    devices: int
    source: str

    @property
    def result_bytes(self) -> int:
        """Bytes of the output on one device."""
        return sum(math.prod(shape) * _size(name) for name, shape in self.shapes)

    @property
    def sent_bytes(self) -> int:
        """Bytes that a device sends in one run of the program, assuming ring algorithms."""
        share = (self.devices - 1) / max(self.devices, 1)
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.devices - 1}
        if self.kind.startswith("collective"):
            return self.times * self.result_bytes
        return round(self.times * self.result_bytes * factor.get(self.kind, share))


def _size(name: str) -> float:
    return (_BITS.get(name) or int(re.search(r"\d+", name)[0])) / 8


def read_collectives(program: str, devices: int) -> list[Collective]:
    """Returns the collectives of a compiled program.

    Args:
      program: text of the program, from `compiled.as_text()`.
      devices: number of devices; the group size of collectives without replica groups.
    """
    computations, entry = _split(program)
    times = dict.fromkeys(computations, 0)

    def visit(name: str, executions: int) -> None:
        times[name] += executions
        for line in computations[name]:
            trips = int(match[1]) if (match := _TRIPS.search(line)) else 1
            for called in _called(line):
                if called in computations:
                    visit(called, executions * trips)

    visit(entry, 1)
    collectives = []
    for name, lines in computations.items():
        for line in lines:
            if times[name] and (match := _COLLECTIVE.search(line)):
                collectives.append(_read(line, match, times[name], devices))
    return collectives


def _split(program: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation and the name of the entry computation."""
    computations, lines, entry = {}, [], ""
    for line in program.splitlines():
        if match := _HEAD.match(line):
            lines = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    return computations, entry


def _called(line: str) -> Iterator[str]:
    """Yields the names of the computations that an instruction calls."""
    yield from _CALLED.findall(line)
    if match := _BRANCHES.search(line):
        yield from (name.strip(" %") for name in match[1].split(","))


def _read(line: str, match: re.Match, times: int, devices: int) -> Collective:
    shapes = tuple(
        (name, tuple(int(n) for n in sizes.split(",") if n))
        for name, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", match[1]))
    )
    if "-start(" in line and match[2] == "all-gather":  # the outputs include the operands
        shapes = shapes[len(shapes) // 2 :]
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(match[2], shapes, times, _group_size(line, devices), name[1] if name else "")


def _group_size(line: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    # Named mesh axes: the group spans the axes listed in braces.
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
