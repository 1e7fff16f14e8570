"""Databases of checkpoints whose nodes are forged."""

import json
import pathlib
import shutil
import struct

import pytest
import tensorstore

from invnext_jax.checkpointing import database, reader
from invnext_jax.errors import UserError

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures/checkpoint_v2"
PREFIX, KEYS = b"a" * 60_000, 80_000  # the keys need 4.8 GB, more than a worker has


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def crc32c(data):
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    crc = 2**32 - 1
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 2**32 - 1


def wrap(magic, body):
    """A file or node of the format OCDBT (version 0, not compressed)."""
    data = struct.pack(">IQ", magic, 0)[:4] + struct.pack("<Q", len(body) + 18) + b"\0\0" + body
    return data + struct.pack("<I", crc32c(data))


def forge_node():
    """A leaf with the key "0" and keys that share all but their last four bytes."""
    rest = KEYS - 2
    lengths = varint(0) + varint(len(PREFIX)) * rest + varint(1) + varint(len(PREFIX) + 4)
    suffixes = b"0" + PREFIX + b"".join(struct.pack(">I", number) for number in range(KEYS - 1))
    values = bytes(2 * KEYS)  # lengths and kinds: empty texts
    return wrap(0x0CDB20DE, b"\0\0" + varint(KEYS) + lengths + varint(4) * rest + suffixes + values)


def write_database(state, node):
    """Writes a database with one node. Its manifest is that of a database with another node."""
    config = {"compression": None}
    store = {"driver": "ocdbt", "config": config, "base": f"file://{state}/"}
    body = size = b""
    while body.count(size) != 2:  # the random name of the file may contain the bytes of its size
        shutil.rmtree(state)
        tensorstore.KvStore.open(store).result().write("key", "v" * 50).result()
        (file,) = (state / "d").iterdir()
        manifest, size = (state / "manifest.ocdbt").read_bytes(), varint(file.stat().st_size)
        body = manifest[14:-4]
        assert body.count(size) >= 2 and wrap(0x0CDB3A2A, body) == manifest
    (state / "manifest.ocdbt").write_bytes(wrap(0x0CDB3A2A, body.replace(size, varint(len(node)))))
    file.write_bytes(node)


def test_small_nodes_with_large_keys_are_refused_before_they_are_read(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "run")
    state = tmp_path / "run/checkpoints/2/state"
    metadata = (state / "_METADATA").read_text()
    node = forge_node()
    assert len(node) < 2**20
    write_database(state, node)
    (state / "_METADATA").write_text(metadata)
    with pytest.raises(UserError, match="the list of arrays in .*2/state needs more than 4 GiB"):
        reader.restore_run(tmp_path / "run")


def test_damaged_nodes_are_named(tmp_path):
    shutil.copytree(FIXTURE / "checkpoints/2/state", tmp_path / "state")
    database.check_nodes(tmp_path / "state")
    for file in (tmp_path / "state/d").iterdir():
        file.write_bytes(json.dumps({}).encode())
    with pytest.raises(ValueError, match="its database is damaged: ValueError: "):
        database.check_nodes(tmp_path / "state")


def test_checkpoints_without_a_database_pass(tmp_path):
    database.check_nodes(tmp_path)
