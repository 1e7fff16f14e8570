"""Parser of compiled programs: instructions, number of executions, and source lines.

The input is the text of an optimized and scheduled HLO module, as `compiled.as_text()` returns it
for CPUs, GPUs and TPUs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Array = tuple[str, tuple[int, ...]]  # type, such as "bf16", and dimensions

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}  # others contain the number
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_START = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TABLE_ROW = re.compile(r"^(\d+) (.*)$")
# Opcodes whose called computations are executed as separate instructions. Others, such as fusions
# and reductions, contain the computations that they call.
_CONTROL_FLOW = ("while", "conditional", "call", "async-start")


class Instruction(NamedTuple):
    """One instruction of a program.

    Attributes:
      name: name of the instruction.
      opcode: operation, such as "fusion".
      results: type and dimensions of each output array.
      operands: names of the operands.
      attributes: text after the operands.
      is_root: whether it is the output of its computation.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that the instruction calls."""
        names = _CALLED.findall(self.attributes)
        if match := _BRANCHES.search(self.attributes):
            names += [name.strip(" %") for name in match[1].split(",")]
        return tuple(names)

    @property
    def op_name(self) -> str:
        """Name of the operation in the model; "" if the compiler did not record it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: instructions of each computation, in the order of execution.
      entry: name of the computation that is executed first.
      frames: (file, line, id of the calling frame) of each stack frame.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    frames: Mapping[str, tuple[str, int, str]]

    @functools.cached_property
    def executions(self) -> Mapping[str, int]:
        """Executions of each computation in one run, also of those within fusions.

        A loop whose number of iterations is unknown counts as one iteration, and each branch of a
        conditional counts as executed.
        """
        return self._count_executions(lambda _: True)

    @functools.cached_property
    def scheduled(self) -> Mapping[str, int]:
        """Executions of those computations whose instructions are executed one by one."""
        counts = self._count_executions(lambda instruction: instruction.opcode in _CONTROL_FLOW)
        return {name: count for name, count in counts.items() if count}

    @functools.cached_property
    def unknown_loops(self) -> list[str]:
        """Names of the loops whose number of iterations is unknown."""
        return [i.name for i, _ in self.instructions() if _is_loop(i) and not self.trips(i)]

    def instructions(self) -> Iterator[tuple[Instruction, int]]:
        """Yields the instructions that are executed one by one, with the number of executions."""
        for name, times in self.scheduled.items():
            for instruction in self.computations[name]:
                yield instruction, times

    def operands(self, computation: str) -> dict[str, tuple[Array, ...]]:
        """Returns the arrays of each instruction of a computation, by name."""
        return {i.name: i.results for i in self.computations[computation]}

    def embedded(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields the instructions of all computations within an instruction, such as a fusion."""
        for name in instruction.called:
            for inner in self.computations.get(name, ()):
                yield inner
                yield from self.embedded(inner)

    def trips(self, loop: Instruction) -> int | None:
        """Returns the number of iterations of a loop, or None if it is unknown.

        If the compiler did not record it, it is read from the condition, assuming a counter from 0.
        """
        if match := _TRIPS.search(loop.attributes):
            return int(match[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        if not condition:
            return None
        test = list(self.computations.get(condition[1], ()))
        test += [inner for i in test for inner in self.embedded(i)]
        compares = [i for i in test if i.opcode == "compare" and "direction=LT" in i.attributes]
        limits = {i.operands[0] for i in test if _is_integer_constant(i)}
        return int(limits.pop()) if len(compares) == len(limits) == 1 else None

    def op_name(self, instruction: Instruction) -> str:
        """Returns the name in the model of an instruction or of the first named one within it."""
        names = (i.op_name for i in (instruction, *self.embedded(instruction)))
        return next(filter(None, names), "")

    def source(self, instruction: Instruction, folder: str) -> str:
        """Returns "file:line" of the innermost call in a folder; "" if it is not recorded.

        Args:
          instruction: an instruction; if it has no stack frame, those within it are used.
          folder: name of a folder in the path of the file, such as "invnext_jax".
        """
        for candidate in (instruction, *self.embedded(instruction)):
            frame = re.search(r"stack_frame_id=(\d+)", candidate.attributes)
            frame_id = frame[1] if frame else ""
            while frame_id in self.frames:
                file, line, frame_id = self.frames[frame_id]
                if f"/{folder}/" in file:
                    return f"{folder}/{file.rpartition(f'/{folder}/')[2]}:{line}"
        return ""

    def _count_executions(self, follows) -> dict[str, int]:
        counts = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name]:
                if follows(instruction):
                    trips = (self.trips(instruction) or 1) if _is_loop(instruction) else 1
                    for called in instruction.called:
                        if called in counts:
                            visit(called, times * trips)

        visit(self.entry, 1)
        return counts


def read_program(text: str) -> Program:
    """Parses the text of a compiled program."""
    computations, lines, entry = {}, [], ""
    tables: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in text.splitlines():
        if match := _HEAD.match(line):
            lines = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        elif not computations and line.isalpha():
            rows = tables[line] = {}
        elif not computations and (match := _TABLE_ROW.match(line)):
            rows[match[1]] = match[2]
        elif _START.match(line) or not lines:
            lines.append(line)
        else:  # attributes of some kernels contain line breaks
            lines[-1] += line
    instructions = {
        name: tuple(_read_instruction(line) for line in lines if _START.match(line))
        for name, lines in computations.items()
    }
    return Program(instructions, entry, _read_frames(tables))


def array_bytes(arrays: tuple[Array, ...]) -> int:
    """Returns the bytes of arrays, without padding of their layout."""
    return math.ceil(sum(math.prod(shape) * type_bits(name) for name, shape in arrays) / 8)


def type_bits(name: str) -> int:
    """Returns the number of bits of an array type, such as "bf16"."""
    digits = re.search(r"\d+", name)
    return _BITS[name] if name in _BITS else int(digits[0]) if digits else 0


def read_arrays(text: str) -> tuple[Array, ...]:
    """Returns the type and dimensions of all arrays in the text of a type."""
    return tuple(
        (name, tuple(int(size) for size in sizes.split(",") if size))
        for name, sizes in _ARRAY.findall(_LAYOUT.sub("", text))
    )


def _read_instruction(line: str) -> Instruction:
    match = _START.match(line)
    rest = line[match.end() :]
    split = (
        _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    )  # the type may be a tuple
    opcode = _OPCODE.search(rest, split)
    end = _closing(rest, opcode.end() - 1)
    operands = re.sub(r"/\*.*?\*/", "", rest[opcode.end() : end - 1])
    return Instruction(
        name=match[1],
        opcode=opcode[1],
        results=read_arrays(rest[:split]),
        operands=tuple(
            part.split()[-1].lstrip("%") for part in operands.split(",") if part.strip()
        ),
        attributes=rest[end:],
        is_root=line.lstrip().startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Returns the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return len(text)


def _read_frames(tables: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, int, str]]:
    files, locations = tables.get("FileNames", {}), tables.get("FileLocations", {})
    rows = {number: _fields(row) for number, row in tables.get("StackFrames", {}).items()}
    # Parents are written with an offset. The first frame has no parent, which is number 0.
    offset = int(next(iter(rows.values()), {}).get("parent_frame_id", 0))
    frames = {}
    for number, row in rows.items():
        location = _fields(locations.get(row.get("file_location_id", ""), ""))
        file = files.get(location.get("file_name_id", ""), "").strip('"')
        parent = str(int(row.get("parent_frame_id", 0)) - offset)
        frames[number] = (file, int(location.get("line", 0)), parent)
    return frames


def _fields(row: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\d+)", row))


def _is_loop(instruction: Instruction) -> bool:
    return instruction.opcode == "while"


def _is_integer_constant(instruction: Instruction) -> bool:
    if instruction.opcode != "constant" or not instruction.operands:
        return False
    ((kind, shape),) = instruction.results[:1] or (("", ()),)
    return kind[:1] in ("s", "u") and not shape and instruction.operands[0].isdigit()
