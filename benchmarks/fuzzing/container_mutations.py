"""Damages video files: flips bits, cuts files, and swaps, repeats, removes and resizes atoms.

A mutation is a function of the files and of its number.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.fuzzing.container_atoms import Atom, find_atoms

SEED = 7
MAX_CHANGES = 3
HEADER_BYTES = 64  # the first bytes of an atom, which are likely to contain numbers
# Values for numeric fields. Shorter fields get the most significant bytes.
EXTREMES = (0, 1, 2**64 - 1, 2**63 - 1, 2**63, 0x7FFFFFFF << 32, 0x80000000 << 32, 0xFFFF << 48)
OGG_POLYNOMIAL = 0x04C11DB7


def mutate(files: Sequence[bytes], number: int) -> bytes:
    """Returns the damaged file with the given number.

    Args:
      files: Undamaged files. Mutation n changes file n modulo the number of files.
      number: Number of the mutation.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((SEED, number))))
    data = files[number % len(files)]
    for _ in range(rng.integers(1, MAX_CHANGES, endpoint=True)):
        change = _pick(CHANGES, rng)
        data = change(_File(data, _find_atoms(data), _pick(files, rng)), rng)
        if not data:
            return data
    # Demuxers ignore pages with a wrong checksum, so most files get correct checksums.
    return write_ogg_checksums(data) if rng.random() < 0.8 else data


@dataclasses.dataclass
class _File:
    """A file to change, its atoms, and another undamaged file."""

    data: bytes
    atoms: list[Atom]
    other: bytes


def _find_atoms(data: bytes) -> list[Atom]:
    """Returns the atoms of a file; the complete file if none is found."""
    return find_atoms(data) or [Atom(0, 0, len(data))]


def _pick(items: Sequence, rng: np.random.Generator):
    return items[rng.integers(len(items))]


def _flip_bits(file: _File, rng) -> bytes:
    """Flips bits anywhere in the file, or in the headers of atoms."""
    changed = bytearray(file.data)
    in_headers = rng.random() < 0.5
    for _ in range(2 ** rng.integers(6)):
        position = rng.integers(len(file.data))
        if in_headers:
            atom = _pick(file.atoms, rng)
            position = rng.integers(atom.start, min(atom.end, atom.start + HEADER_BYTES))
        changed[position] ^= 1 << rng.integers(8)
    return bytes(changed)


def _set_number(file: _File, rng) -> bytes:
    """Sets a field of an atom to an extreme value."""
    atom, length = _pick(file.atoms, rng), int(_pick((1, 2, 4, 8), rng))
    position = rng.integers(atom.start, min(atom.end, atom.body + HEADER_BYTES))
    value = _pick(EXTREMES, rng).to_bytes(8, "big")[:length]
    return _splice(file.data, position, min(len(file.data), position + length), value)


def _cut(file: _File, rng) -> bytes:
    """Removes the end, the start or the middle of the file."""
    bounds = [atom.start for atom in file.atoms] if rng.random() < 0.5 else range(len(file.data))
    first, last = sorted((int(_pick(bounds, rng)), int(_pick(bounds, rng))))
    return _pick((file.data[:last], file.data[first:], file.data[:first] + file.data[last:]), rng)


def _fill(file: _File, rng) -> bytes:
    """Overwrites a range with zeros or random bytes."""
    atom = _pick(file.atoms, rng)
    start, end = sorted(rng.integers(atom.start, atom.end, 2, endpoint=True).tolist())
    content = rng.bytes(end - start) if rng.random() < 0.5 else bytes(end - start)
    return _splice(file.data, start, end, content)


def _swap(file: _File, rng) -> bytes:
    """Exchanges two atoms that do not contain each other."""
    first = _pick(file.atoms, rng)
    later = [atom for atom in file.atoms if atom.start >= first.end]
    if not later:
        return file.data
    second = _pick(later, rng)
    parts = (slice(second.start, second.end), slice(first.end, second.start))
    middle = file.data[parts[0]] + file.data[parts[1]] + file.data[first.start : first.end]
    return _splice(file.data, first.start, second.end, middle)


def _repeat(file: _File, rng) -> bytes:
    """Inserts copies of an atom after it, and usually increases the sizes of its parents."""
    atom = _pick(file.atoms, rng)
    copies = file.data[atom.start : atom.end] * int(_pick((1, 1, 2, 20), rng))
    return _insert(file.data, atom.end, copies, atom.parents, rng)


def _nest(file: _File, rng) -> bytes:
    """Inserts a copy of an atom of this file or of another one into an atom."""
    target, source = _pick(file.atoms, rng), file.data if rng.random() < 0.5 else file.other
    atom = _pick(_find_atoms(source), rng)
    content = source[atom.start : atom.end]
    return _insert(file.data, target.body, content, (*target.parents, target), rng)


def _remove(file: _File, rng) -> bytes:
    """Removes an atom, and usually shrinks the atoms around it."""
    atom = _pick(file.atoms, rng)
    changed = _resize_all(file.data, atom.parents, atom.start - atom.end, rng)
    return _splice(changed, atom.start, atom.end, b"")


def _resize(file: _File, rng) -> bytes:
    """Writes a wrong size into an atom, so that it ends too early or too late."""
    atom = _pick([atom for atom in file.atoms if atom.size_bytes] or file.atoms, rng)
    if rng.random() < 0.5:
        return _add_to_size(file.data, atom, int(rng.integers(-64, 64)))
    return _add_to_size(file.data, atom, _pick(EXTREMES, rng) >> 8 * (8 - atom.size_bytes))


def _insert(data, position, content, parents, rng) -> bytes:
    changed = _resize_all(data, parents, len(content), rng)
    return _splice(changed, position, position, content)


def _resize_all(data: bytes, atoms: Sequence[Atom], surplus: int, rng) -> bytes:
    if rng.random() < 0.8:
        for atom in atoms:
            data = _add_to_size(data, atom, surplus)
    return data


def _add_to_size(data: bytes, atom: Atom, surplus: int) -> bytes:
    """Adds a number to the size field of an atom, modulo the range of the field."""
    if not atom.size_bytes:
        return data
    end = atom.size_at + atom.size_bytes
    if atom.order == "vint":
        bits = 7 * atom.size_bytes
        value = int.from_bytes(data[atom.size_at : end], "big") % 2**bits
        field = (2**bits + (value + surplus) % 2**bits).to_bytes(atom.size_bytes, "big")
    else:
        value = int.from_bytes(data[atom.size_at : end], atom.order) + surplus
        field = (value % 256**atom.size_bytes).to_bytes(atom.size_bytes, atom.order)
    return _splice(data, atom.size_at, end, field)


def _splice(data: bytes, start: int, end: int, content: bytes) -> bytes:
    return data[:start] + content + data[end:]


CHANGES = (_flip_bits, _set_number, _cut, _fill, _swap, _repeat, _nest, _remove, _resize)


def write_ogg_checksums(data: bytes) -> bytes:
    """Corrects the checksums of the pages of an Ogg file. Other files do not change."""
    if data[:4] != b"OggS":
        return data
    changed = bytearray(data)
    for page in find_atoms(data):
        changed[page.start + 22 : page.start + 26] = bytes(4)
        checksum = _ogg_checksum(changed[page.start : page.end])
        changed[page.start + 22 : page.start + 26] = checksum.to_bytes(4, "little")
    return bytes(changed)


def _ogg_checksum(page: bytes) -> int:
    """Returns the CRC-32 of Ogg: not reflected, and 0 at the start and the end."""
    value = 0
    for byte in page:
        value = (value << 8) % 2**32 ^ _OGG_TABLE[value >> 24 ^ byte]
    return value


def _ogg_table_entry(value: int) -> int:
    value <<= 24
    for _ in range(8):
        value = (value << 1) ^ (OGG_POLYNOMIAL if value >> 31 else 0)
        value %= 2**32
    return value


_OGG_TABLE = tuple(map(_ogg_table_entry, range(256)))
