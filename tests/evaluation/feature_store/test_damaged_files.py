"""Damaged files of an earlier command are written again or ignored."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation import video_scores
from invnext_jax.evaluation.feature_store.feature_folder import open_folder
from invnext_jax.evaluation.feature_store.state_file import StateFile

META = {"key": "k", "chunk_rows": 2}
MARKER = {"kinds": np.array(["tokens"]), "complete": np.array(True), "index": np.arange(2)}


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(header, data=b""):
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def floats(shape, data=b""):
    return npy(f"{{'descr':'<f4','fortran_order':False,'shape':{shape}}}", data)


def archive(data=b"x", *, encrypted=False, method=None):
    """Makes an .npz archive in which all members that are read are damaged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("kinds.npy", "key.npy", "index_0.npy"):
            file.writestr(name, data)
    content = bytearray(buffer.getvalue())
    for start, flag, kind in ((b"PK\1\2", 8, 10), (b"PK\3\4", 6, 8)):
        place = content.find(start)
        while place >= 0:
            content[place + flag] |= encrypted
            if method:
                content[place + kind : place + kind + 2] = struct.pack("<H", method)
            place = content.find(start, place + 1)
    return bytes(content)


ARCHIVES = [
    archive(encrypted=True),
    archive(method=99),
    archive(method=14),
    archive(method=12),
    archive(method=8),
    archive(npy("(" * 9000)),
    archive(npy("-" * 9000 + "1")),
    archive(npy("{'descr':'<f4'")),
    b"text",
]


def missing_chunks(folder, meta=None, marker=None, array=None):
    folder.mkdir(exist_ok=True)
    content = json.dumps(META).encode() if meta is None else meta
    (folder / "meta.json").write_bytes(content)
    (folder / "000000.npz").write_bytes(npz(**MARKER) if marker is None else marker)
    array = floats((2, 3), bytes(24)) if array is None else array
    (folder / "000000-tokens.npy").write_bytes(array)
    return open_folder(folder, "k", 2, 2).missing_chunks()


@pytest.mark.parametrize(
    "meta",
    [b"[" * 10**5, b"\xff", b"[]", b'{"key":"k"}']
    + [json.dumps({**META, "chunk_rows": rows}).encode() for rows in (0, -1, "2", True, [2])],
)
def test_features_are_extracted_again_if_their_description_is_damaged(tmp_path, meta):
    assert missing_chunks(tmp_path / "good") == []
    assert missing_chunks(tmp_path / "bad", meta=meta) == [0]


@pytest.mark.parametrize(
    "marker",
    [
        *ARCHIVES,
        npz(a=1),
        npz(**{**MARKER, "kinds": np.array(5)}),
        npz(**{**MARKER, "kinds": np.array(["/../../../../etc/passwd"])}),
        npz(**{**MARKER, "complete": np.array([True, False])}),
        npz(**{**MARKER, "index": np.array(1)}),
        npz(**{**MARKER, "index": np.arange(3)}),
    ],
    ids=range(len(ARCHIVES) + 6),
)
def test_features_are_extracted_again_if_the_marker_is_damaged(tmp_path, marker):
    assert missing_chunks(tmp_path / "bad", marker=marker) == [0]


@pytest.mark.parametrize(
    "array",
    [
        floats((-2, -3), bytes(24)),
        floats((), bytes(4)),
        floats("('a',)"),
        floats(f"({10**400},)"),
        npy("(" * 9000),
        npy("-" * 9000 + "1"),
        npy("\0"),
        npy("{'descr':'<f4'"),
        npy("{'descr':'|O','fortran_order':False,'shape':(2,)}"),
        npy("{'descr':[('a','<f4'),('b',[('c','O')])],'fortran_order':False,'shape':(2,)}"),
    ],
    ids=range(10),
)
def test_features_are_extracted_again_if_an_array_is_damaged(tmp_path, array):
    assert missing_chunks(tmp_path / "bad", array=array) == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
@pytest.mark.parametrize("is_old", [False, True])
def test_changed_values_are_extracted_again(tmp_path, capsys, value, is_old):
    """One number of the second chunk is replaced, so that the size of the file is the same."""
    store = open_folder(tmp_path, "k", 5, 2)
    rng = np.random.default_rng(0)
    for chunk in store.chunks:
        rows = store.rows_of(chunk)
        arrays = {kind: rng.normal(size=(len(rows), 1, 3)).astype("f4") for kind in "ab"}
        store.write(chunk, arrays, {"index": np.array(rows)}, complete=True)
        if is_old:  # files of older versions have no checksums
            with np.load(tmp_path / f"{chunk:06d}.npz") as archive:
                found = {k: v for k, v in archive.items() if not k.startswith("checksum")}
            np.savez(tmp_path / f"{chunk:06d}.npz", **found)
    assert store.missing_chunks() == [] and not capsys.readouterr().out
    path = tmp_path / "000001-b.npy"
    np.lib.format.open_memmap(path, mode="r+")[1, 0, 2] = value
    damaged = not is_old or not np.isfinite(value)
    assert store.missing_chunks() == [1] * damaged
    text = "values that are not finite numbers" if is_old else "been changed since it was written"
    message = f"{path} has {text}. Its features are extracted again.\n"
    assert capsys.readouterr().out == message * damaged


def test_drafts_are_removed_only_if_their_writer_has_ended(tmp_path):
    open_folder(tmp_path, "k", 2, 2)
    (tmp_path / ".000001.npz.12.part").touch()
    with atomic_file.atomic_path(tmp_path / "000000.npz") as part:
        part.write_bytes(b"half")
        open_folder(tmp_path, "k", 2, 2)
        assert part.read_bytes() == b"half"
        assert not (tmp_path / ".000001.npz.12.part").exists()
    assert (tmp_path / "000000.npz").read_bytes() == b"half"


STATES = [
    *ARCHIVES,
    npz(key=np.array("k"), step=np.array("x"), leaf0=np.zeros(2)),
    npz(key=np.array("k"), step=np.arange(3), leaf0=np.zeros(2)),
    npz(key=np.array("k"), step=np.array(1), leaf0=np.array(["a", "b"])),
]


@pytest.mark.parametrize("content", STATES, ids=range(len(STATES)))
def test_training_starts_again_if_the_state_is_damaged(tmp_path, content):
    (tmp_path / "state.npz").write_bytes(content)
    state = [np.ones(2, np.float32)]
    assert StateFile(tmp_path / "state.npz", "k").restore(state) == (state, 0)


@pytest.mark.parametrize("content", ARCHIVES, ids=range(len(ARCHIVES)))
def test_damaged_scores_are_missing(tmp_path, content):
    (tmp_path / "scores.npz").write_bytes(content)
    assert video_scores.read(tmp_path / "scores.npz", 0) is None


def test_deeply_nested_folders_are_a_sentence(tmp_path, nest_folders):
    nest_folders(tmp_path / "features")
    with pytest.raises(UserError, match="has deeply nested folders: delete it"):
        open_folder(tmp_path / "features", "k", 2, 2)
