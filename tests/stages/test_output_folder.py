"""Files with outputs of a frozen network: only complete files of the same clip are used."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.stages.output_folder import OutputFolder

SHAPES = {
    "taps": jax.ShapeDtypeStruct((2, 5), jnp.bfloat16),
    "pooled": jax.ShapeDtypeStruct((3,), np.float32),
}
CLIP = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)


def open_folder(path, **described):
    return OutputFolder(path, SHAPES, {"dtype": "bfloat16", **described}, "config.cache")


def make_outputs(fill=None):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=x.shape).astype(x.dtype) for name, x in SHAPES.items()}
    return {name: x if fill is None else np.full_like(x, fill) for name, x in values.items()}


@pytest.fixture
def stored(tmp_path):
    """A folder with the outputs for row 7, and their file."""
    folder = open_folder(tmp_path / "outputs")
    folder.write(7, folder.hash_clip(CLIP), make_outputs())
    return folder, tmp_path / "outputs" / "00000007.outputs"


def is_readable(folder, row=7, clip=CLIP):
    return folder.read(row, folder.hash_clip(clip), make_outputs(0))


def test_outputs_are_read_as_they_were_written(stored):
    folder, path = stored
    read = make_outputs(0)
    assert folder.read(7, folder.hash_clip(CLIP), read)
    for name, expected in make_outputs().items():
        np.testing.assert_array_equal(read[name], expected)
    assert folder.clip_bytes == path.stat().st_size == 32 + 4 + 2 * 10 + 4 * 3
    assert folder.count_files() == 1


def test_other_rows_and_other_clips_are_missing(stored):
    folder, _ = stored
    assert is_readable(folder)
    assert not is_readable(folder, row=8)
    other = CLIP.copy()
    other[1, 1, 1, 2] ^= 1
    assert not is_readable(folder, clip=other)


def test_every_changed_byte_is_found(stored):
    folder, path = stored
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert not is_readable(folder), position
    path.write_bytes(content)
    assert is_readable(folder)


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x + b"0", lambda x: x[:0]])
def test_files_of_another_size_are_missing(change, stored):
    folder, path = stored
    path.write_bytes(change(path.read_bytes()))
    assert not is_readable(folder)
    assert folder.count_files() == 0


def test_interrupted_writing_leaves_the_stored_outputs(stored, monkeypatch):
    folder, path = stored
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(atomic_file, "sync", stop)
        folder.write(7, folder.hash_clip(CLIP), make_outputs(1))
    assert path.read_bytes() == before and is_readable(folder)


def test_temporary_files_of_killed_writers_are_removed(stored):
    folder, path = stored
    part = path.with_name(f".{path.name}.0{atomic_file.TEMPORARY_SUFFIX}")
    part.write_bytes(b"0")
    open_folder(folder.folder)
    assert not part.exists() and is_readable(folder)


def test_links_and_pipes_are_not_read(stored, tmp_path):
    folder, path = stored
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not is_readable(folder)
    path.unlink()
    os.mkfifo(path)
    assert not is_readable(folder)
    folder.write(7, folder.hash_clip(CLIP), make_outputs())  # replaces it
    assert is_readable(folder) and path.is_file()


def test_linked_descriptions_are_refused(stored, tmp_path):
    description = stored[0].folder / "outputs.json"
    description.rename(tmp_path / "elsewhere")
    description.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"config.cache='.*' cannot be used"):
        open_folder(stored[0].folder)


def test_outputs_with_another_description_are_refused_and_not_read(stored):
    folder, _ = stored
    with pytest.raises(UserError, match="dtype 'bfloat16', but this run has 'float32' and 1 more"):
        open_folder(folder.folder, dtype="float32", size=3)
    # Two runs may have created the description at the same time.
    (folder.folder / "outputs.json").unlink()
    os.rename(folder.folder / "00000007.outputs", folder.folder.parent / "7")
    other = open_folder(folder.folder, dtype="float32")
    os.rename(folder.folder.parent / "7", folder.folder / "00000007.outputs")
    assert is_readable(folder) and not is_readable(other)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_damaged_descriptions_are_refused(content, stored):
    (stored[0].folder / "outputs.json").write_text(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        open_folder(stored[0].folder)
    assert "\n" not in str(caught.value)


def test_folders_with_other_files_are_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(
        UserError, match="other files, such as 'thesis.txt': set it to a new folder"
    ):
        open_folder(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"config.cache='.*' cannot be used \(File exists\)"):
        open_folder(tmp_path / "file")
