"""Manifests and videos on remote file systems: fetched blocks and errors."""

import contextlib
import errno
import io
import os
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from batches import assert_equal, next_batches
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from configs import common
from invnext_jax.data import decode, video_io
from invnext_jax.data import files as files_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.errors import UserError


class OddError(Exception):
    """An error of a remote file system that is not an OSError."""


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        if self.fs.broken:
            raise OddError("the line is cut")
        self.fs.fetched.append((start, end))
        return self.fs.cat_file(self.path, start=start, end=end)


class CountedSystem(MemoryFileSystem):
    """A remote file system that records the fetched ranges."""

    protocol = "counted"
    fetched, broken, whole_files = [], False, False
    store, pseudo_dirs = {}, [""]

    def _open(self, path, mode="rb", **kwargs):
        if mode != "rb":
            return super()._open(path, mode, **kwargs)
        if path.endswith("secret.mp4"):
            raise PermissionError(path)
        size = self.info(path)["size"]
        file = CountedFile(self, path, mode, size=size, **kwargs)
        if self.whole_files:
            file.seek = lambda *_: (_ for _ in ()).throw(ValueError("cannot seek"))
        return file

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("counted://", "memory://"))


@pytest.fixture
def counted():
    """An empty file system with the protocol "counted"."""
    fsspec.register_implementation("counted", CountedSystem, clobber=True)
    CountedSystem.fetched, CountedSystem.broken = [], False
    CountedSystem.whole_files, CountedSystem.store = False, {}
    return CountedSystem()


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    with contextlib.suppress(FileNotFoundError):
        system.rm("/data", recursive=True)


@pytest.fixture
def config():
    config = common.data()
    config.update(frames=4, size=32, short_side=32, workers=0, protocols=("memory", "counted"))
    return config


def batches_of(config, manifest, count=2):
    config.manifest = str(manifest)
    return next_batches(config, count, batch_size=6)[0]


def test_clips_of_a_remote_data_set_equal_local_ones(config, world_folder, memory):
    memory.put(f"{world_folder}/", "/data/", recursive=True)
    local = batches_of(config, world_folder / "train.csv")
    assert_equal(batches_of(config, "memory://data/train.csv"), local)


def test_worker_processes_read_remote_files(config, world_folder):
    local = batches_of(config, world_folder / "train.csv")
    config.workers = 1
    assert_equal(batches_of(config, f"file://{world_folder}/train.csv"), local)


def test_names_of_videos_are_resolved_against_the_manifest(memory, tmp_path):
    memory.pipe("/data/a/list.csv", b"path,source\nb/1.mp4,x\n/c/2.mp4,x\nmemory://data/3.mp4,x\n")
    rules = AccessRules(protocols=("memory",), other_hosts=True)
    paths = manifest_lib.read_manifest("memory://data/a/list.csv", rules).paths
    assert paths == ["memory://data/a/b/1.mp4", "/c/2.mp4", "memory://data/3.mp4"]
    (tmp_path / "list.csv").write_text("path,source\n1.mp4,x\nmemory://data/2.mp4,x\n")
    paths = manifest_lib.read_manifest(tmp_path / "list.csv", rules).paths
    assert paths == [str(tmp_path / "1.mp4"), "memory://data/2.mp4"]


def read_frames(name, pick):
    with video_io.open_source(name) as source:
        return decode.read_frames(source, pick)


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")]
)
def test_bytes_are_fetched_in_blocks_each_once(
    ending, codec, counted, videos, tmp_path, monkeypatch
):
    options = {"preset": "ultrafast", "g": "12"} if codec == "libx264" else {}
    path = videos.write(tmp_path / f"a.{ending}", codec=codec, frames=120, options=options)
    size = path.stat().st_size
    counted.pipe(f"/a.{ending}", path.read_bytes())
    monkeypatch.setattr(files_lib, "BLOCK_BYTES", size // 8)
    for requested in ([0, 60, 119], [119, 0]):
        CountedSystem.fetched = []
        frames = read_frames(f"counted://a.{ending}", lambda _, w=requested: w)
        np.testing.assert_array_equal(frames, decode.read_frames(path, lambda _, w=requested: w))
        starts = [start for start, _ in CountedSystem.fetched]
        assert len(set(starts)) == len(starts) <= 9
        assert sum(min(end, size) - start for start, end in CountedSystem.fetched) <= size


def test_only_the_requested_part_of_a_long_file_is_fetched(counted, monkeypatch):
    counted.pipe("/long.bin", bytes(range(256)) * 4096)
    monkeypatch.setattr(files_lib, "BLOCK_BYTES", 4096)
    with files_lib.open_remote("counted://long.bin") as file:
        file.seek(900_000)
        assert file.read(3) == bytes((900_000 + i) % 256 for i in range(3))
        assert file.seek(0, 2) == 2**20 and file.seek(-1, 2) == 2**20 - 1
        assert file.read(9) == b"\xff"
    assert sum(end - start for start, end in CountedSystem.fetched) <= 4 * 4096


def test_files_of_a_server_without_ranges_are_fetched_completely(counted, videos, tmp_path):
    path = videos.write(tmp_path / "a.mp4")
    counted.pipe("/a.mp4", path.read_bytes())
    CountedSystem.whole_files = True
    frames = read_frames("counted://a.mp4", lambda _: [50, 2])
    assert videos.numbers(frames) == [50, 2]


def test_endless_files_of_a_server_without_ranges_are_bad_videos(counted, monkeypatch):
    monkeypatch.setattr(files_lib, "MAX_STREAM_BYTES", 2**25)
    monkeypatch.setattr(CountedFile, "read", lambda _, size: bytes(size))
    counted.pipe("/a.mp4", b"x")
    CountedSystem.whole_files = True
    with pytest.raises(decode.BadVideo, match="larger than 33554432 bytes") as caught:
        read_frames("counted://a.mp4", range)
    assert caught.value.kind == "corrupt"


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_truncated_remote_file_is_refused(name, counted, videos, tmp_path):
    path = videos.write(tmp_path / name, options={"preset": "ultrafast"})
    counted.pipe(f"/{name}", path.read_bytes()[: path.stat().st_size * 7 // 10])
    with pytest.raises(decode.BadVideo, match=f"counted://{name}: "):
        read_frames(f"counted://{name}", range)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("none.mp4", "missing"), ("secret.mp4", "permission"), ("text.mp4", "corrupt")],
)
def test_single_files_that_cannot_be_read_are_bad_videos(name, kind, counted):
    counted.pipe("/text.mp4", b"no video " * 100)
    counted.pipe("/secret.mp4", b"")
    with pytest.raises(decode.BadVideo, match=f"counted://{name}: ") as caught:
        read_frames(f"counted://{name}", range)
    assert caught.value.kind == kind


@pytest.mark.parametrize("name", ["a\0b.mp4", "\ud800.mp4"])
def test_names_that_no_file_can_have_are_bad_videos(name):
    for record in (None, 0):
        with pytest.raises(decode.BadVideo, match="no file can have this name") as caught:
            video_io.open_source(name, record).__enter__()
        assert caught.value.kind == "missing" and str(caught.value).isascii()


def test_names_that_the_locale_cannot_encode_are_explained():
    code = "from invnext_jax.data import video_io; video_io.open_source('\\xe4.mp4').__enter__()"
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert last.endswith("in the encoding ascii of this locale (set PYTHONUTF8=1)")


def test_paths_without_a_file_are_missing_and_are_not_read_again(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in (".", "file/a.mp4", "loop", "a" * 5000, "none"):
        with pytest.raises(decode.BadVideo) as caught:
            video_io.open_source(str(tmp_path / name)).__enter__()
        assert caught.value.kind == "missing"


def test_errors_of_a_file_system_are_bad_videos(counted, videos, tmp_path):
    counted.pipe("/a.mp4", videos.write(tmp_path / "a.mp4").read_bytes())
    CountedSystem.broken = True
    with pytest.raises(decode.BadVideo, match="OddError: the line is cut") as caught:
        read_frames("counted://a.mp4", range)
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_a_read_that_fails_is_not_a_truncated_file(name, codec, videos, tmp_path, monkeypatch):
    path = videos.write(tmp_path / name, codec=codec, frames=200)
    limit, read = path.stat().st_size * 3 // 4, io.FileIO.read

    def failing_read(file, size=-1):
        if file.tell() >= limit:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file, min(size, limit - file.tell()))

    monkeypatch.setattr(files_lib, "_RAW_READ", failing_read)
    with pytest.raises(decode.BadVideo, match=f"{name}: Input/output error") as caught:
        read_frames(str(path), lambda _: [0, 1])
    assert caught.value.kind == "unreadable"


def test_a_missing_package_is_named_before_the_first_step(tmp_path, monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    (tmp_path / "list.csv").write_text("path,source\ngs://bucket/1.mp4,x\n")
    monkeypatch.setattr(files_lib.fsspec, "get_filesystem_class", missing)
    for names in ("gs://bucket/list.csv", str(tmp_path / "list.csv")):
        with pytest.raises(UserError, match="gs://bucket/.* install gcsfs") as caught:
            manifest_lib.read_manifest(names)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("nowhere://a.csv", "Protocol not known"), ("memory://data/none.csv", "does not exist")],
)
def test_unreadable_remote_manifests_are_refused_in_one_sentence(name, text):
    rules = AccessRules(protocols=("memory", "nowhere"))
    with pytest.raises(UserError, match=text):
        manifest_lib.read_manifest(name, rules)


def test_local_files_do_not_go_through_fsspec(monkeypatch, videos, tmp_path):
    monkeypatch.setattr(LocalFileSystem, "open", None)
    path = videos.write(tmp_path / "a.mp4")
    assert videos.numbers(read_frames(str(path), lambda _: [7])) == [7]
