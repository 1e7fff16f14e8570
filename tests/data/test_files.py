"""Only regular files with content are opened as videos."""

import asyncio
import http.server
import itertools
import os
import threading

import pytest

from invnext_jax.data import files, shards, video_io
from invnext_jax.dataset_prep.tfds_metadata import read_class_names
from invnext_jax.video.demux import BadVideo
from invnext_jax.weights import files as weights


def make(kind, folder):
    path = folder / "clip.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("empty", "huge"):
        path.touch()
        os.truncate(path, 2**41 if kind == "huge" else 0)
    else:
        path.symlink_to(kind)
    return str(path)


@pytest.mark.parametrize("kind", ["pipe", "empty", "/dev/zero", "/proc/self/mem"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_pipes_devices_and_empty_files_are_bad_videos(kind, prefix, tmp_path):
    path = make(kind, tmp_path)
    reason = "empty file" if kind in ("empty", "/proc/self/mem") else "not a regular file"
    with pytest.raises(BadVideo, match=reason) as caught, video_io.open_source(prefix + path):
        pass
    # Neither kind is a failure of the storage.
    assert caught.value.kind == ("corrupt" if reason == "empty file" else "missing")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_files_with_the_size_of_the_memory_are_bad_videos(prefix, tmp_path):
    path = make("huge", tmp_path)  # as /proc/kcore
    with (
        pytest.raises(BadVideo, match="larger than") as caught,
        video_io.open_source(prefix + path),
    ):
        pass
    assert caught.value.kind == "corrupt"


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_shards_and_digests_are_read_from_regular_files(kind, tmp_path):
    path = make(kind, tmp_path)
    with pytest.raises(BadVideo, match="not a regular file"):
        shards.read_video(path, 0)
    with pytest.raises(OSError, match="Not a regular file"):
        video_io.digest_file(path)


READERS = {
    "video": files.LocalFile,
    "url": lambda path: files.open_remote(f"file://{path}"),
    "digest": video_io.digest_file,
    "manifest": lambda path: video_io.hash_files([path]),
    "record": lambda path: shards.read_example(path, 0),
    "records": lambda path: list(shards.iterate_records(path)),
    "count": shards.count_records,
    "class names": lambda path: read_class_names(os.path.dirname(path), "a"),
    "weights": weights.open_checkpoint,
    "metadata": weights.read_metadata,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_that_replaces_a_file_after_its_check_is_an_error(kind, tmp_path, monkeypatch):
    suffix = ".safetensors" if kind in ("weights", "metadata") else ".labels.txt"
    path, stat, regular = f"{tmp_path}/a{suffix}", os.stat, os.stat(__file__)
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda p, **k: regular if str(p) == path else stat(p, **k))
    monkeypatch.setattr(os.path, "isfile", lambda _: True)
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    with pytest.raises((OSError, ValueError, BadVideo), match="[Nn]ot a regular file"):
        READERS[kind](path)
    shards.read_ahead(path)


async def make_parts(parts):
    for part in parts:
        yield part


def test_answers_of_web_servers_have_at_most_one_block():
    part = bytes(2**20)
    block = asyncio.run(files.read_answer(make_parts([part] * 4)))
    assert len(block) == files.BLOCK_BYTES
    with pytest.raises(OSError, match="the server sent more than the 4194304 bytes of a block"):
        asyncio.run(files.read_answer(make_parts(itertools.repeat(part))))


class EndlessServer(http.server.BaseHTTPRequestHandler):
    """Says that a file has 1,000 bytes, and sends bytes until the client closes the connection."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):  # noqa: N802
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):  # noqa: N802
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-999/1000")
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(bytes(2**20))

    def log_message(self, *arguments):
        """Requests are not logged."""


def test_an_endless_answer_of_a_web_server_is_not_read(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "handle_error", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EndlessServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(OSError, match="the server sent more than"):
            video_io.hash_files([f"http://127.0.0.1:{server.server_port}/list.csv"])
        server.shutdown()


def test_a_file_that_cannot_be_opened_can_be_closed():
    """From Python 3.13 on, the deletion of the file reports errors of `close`."""
    file = files._RemoteFile.__new__(files._RemoteFile)
    with pytest.raises(FileNotFoundError):
        file.__init__("memory://no/file.mp4")
    file.close()
