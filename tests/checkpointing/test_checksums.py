import errno
import json
import os
import pathlib
import shutil
import types

import pytest

from invnext_jax import regular_file
from invnext_jax.checkpointing import checksums, storage
from invnext_jax.checkpointing.checksums import CorruptCheckpointError
from invnext_jax.errors import UserError


@pytest.fixture
def step(whole_run_files, tmp_path):
    """A copy of a finished checkpoint, as a run wrote it."""
    shutil.copytree(whole_run_files / "checkpoints/6", tmp_path / "6")
    return tmp_path / "6"


def test_intact_checkpoint_passes(step):
    assert checksums.verify_checksums(step)


def test_every_item_file_has_a_checksum(step):
    sums = json.loads((step / "sums.json").read_text())
    files = {str(path.relative_to(step)) for path in step.rglob("*/*") if path.is_file()}
    assert {name for name in files if not name.endswith("commit_success.txt")} == sums.keys()
    assert {name.split("/")[0] for name in sums} == {"state", "data", "meta"}


def test_files_and_folders_are_synced_before_the_checkpoint_is_renamed(step, monkeypatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.readlink(f"/proc/self/fd/{file}")))
    checksums.write_checksums(step)  # Orbax then renames the folder
    assert {str(step), *map(str, step.rglob("*"))} <= synced


def test_file_system_without_folder_sync_is_accepted(step, monkeypatch):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    checksums.write_checksums(step)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        checksums.write_checksums(step)


def test_one_flipped_bit_in_any_file_is_detected(step):
    for name in json.loads((step / "sums.json").read_text()):
        path = step / name
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(CorruptCheckpointError, match="has changed"):
            checksums.verify_checksums(step)
        path.write_bytes(data)
    assert checksums.verify_checksums(step)


def test_missing_or_truncated_file_is_detected(step):
    path = max((step / "state").rglob("d/*"), key=os.path.getsize)
    os.truncate(path, os.path.getsize(path) - 1)
    with pytest.raises(CorruptCheckpointError, match="bytes instead of"):
        checksums.verify_checksums(step)
    path.unlink()
    with pytest.raises(CorruptCheckpointError, match="No such file"):
        checksums.verify_checksums(step)


def test_checkpoint_invisible_to_this_process_is_not_reported_as_corrupt(tmp_path):
    with pytest.raises(UserError, match="this process cannot find the checkpoint .*/6: mount"):
        checksums.verify_checksums(tmp_path / "6")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": [1]'])
def test_unreadable_checksums_are_corruption(step, text):
    (step / "sums.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match="cannot be read"):
        checksums.verify_checksums(step)


@pytest.mark.parametrize("name", ["../6/sums.json", "/etc/hostname"])
def test_checksums_cannot_name_files_outside_the_checkpoint(step, name):
    (step / "sums.json").write_text(json.dumps({name: [0, ""]}))
    with pytest.raises(CorruptCheckpointError, match="outside the checkpoint"):
        checksums.verify_checksums(step)


@pytest.mark.parametrize("name", ["state/a\0b", "state/\ud800", "\udc80"])
def test_names_that_no_file_can_have_are_corruption(step, name):
    (step / "sums.json").write_text(json.dumps({name: [0, ""]}))
    with pytest.raises(CorruptCheckpointError, match="lists names with"):
        checksums.verify_checksums(step)


def test_checkpoint_older_than_checksums_differs_from_one_that_lost_them(step):
    (step / "sums.json").unlink()
    assert not checksums.verify_checksums(step)
    assert json.loads((step / "meta/metadata").read_text())["sums"] is True


def test_deeply_nested_folders_are_corruption(step, nest_folders):
    nest_folders(step / "deep")
    with pytest.raises(CorruptCheckpointError, match="has folders at more than 32 levels"):
        checksums.verify_checksums(step)
    assert len(list(storage.list_files(step))) > 2
    storage.remove_folder(step / "deep/d")  # fails without an error


@pytest.mark.parametrize("name", ["state/./a", "state//a", "./state/a", "state/a/", ""])
def test_names_that_may_repeat_a_file_are_corruption(step, name, monkeypatch):
    monkeypatch.setattr(checksums, "_size_and_digest", None)  # no file is hashed
    (step / "sums.json").write_text(json.dumps({"state/a": [0, ""], name: [0, ""]}))
    with pytest.raises(CorruptCheckpointError, match="lists names that are not normal paths"):
        checksums.verify_checksums(step)


def sparse(folder):
    with open(folder / "state/d/sparse", "wb") as file:
        file.truncate(2**40)


def hard_links(folder):
    path = folder / "state/d/0"
    path.write_bytes(bytes(2**20))
    for number in range(1, 1200):
        os.link(path, path.with_name(str(number)))


def symbolic_links(folder):
    (folder / "state/d/0").write_bytes(bytes(2**20))
    for number in range(1, 1200):
        (folder / f"state/d/{number}").symlink_to("0")


@pytest.mark.parametrize("make", [sparse, hard_links, symbolic_links])
def test_files_that_take_no_space_on_the_disk_are_not_hashed(step, make, monkeypatch):
    make(step)
    monkeypatch.setattr(checksums, "_size_and_digest", None)
    with pytest.raises(CorruptCheckpointError, match="because they are sparse or links to one"):
        checksums.verify_checksums(step)


@pytest.mark.parametrize("blocks", [0, 1, 50])
def test_checkpoints_on_other_file_systems_pass(step, blocks, monkeypatch):
    """Some file systems compress files, and some do not report the space on the disk."""
    stat = pathlib.Path.stat

    def fake_stat(path, **options):
        found = stat(path, **options)
        share = blocks * found.st_size // 50 // 512 + bool(blocks)
        return types.SimpleNamespace(
            **{name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
            | {"st_blocks": share}
        )

    monkeypatch.setattr(regular_file, "_MAX_UNCHECKED", 0)
    monkeypatch.setattr(pathlib.Path, "stat", fake_stat)
    assert checksums.verify_checksums(step)


@pytest.mark.parametrize("row", [["x" * 10**6, ""], [-1, ""], [True, ""], [1, 2]])
def test_sizes_and_hashes_of_other_types_are_corruption(step, row):
    (step / "sums.json").write_text(json.dumps({"state/a": row}))
    with pytest.raises(CorruptCheckpointError, match="has a wrong type") as raised:
        checksums.verify_checksums(step)
    assert len(str(raised.value)) < 200
