"""Files that cannot be probed: hangs, crashes and read errors affect only their own file."""

import dataclasses
import errno
import io
import os
import sys
import time

import pytest
from fakes import measure_growth, probe_or_hang

from invnext_jax.data import decode
from invnext_jax.data import files as files_lib
from invnext_jax.dataset_prep import probing
from invnext_jax.workers import process_worker as workers

X264 = {"preset": "ultrafast", "g": "12"}


def probe_all(paths, **options):
    options = {"workers": 2, "timeout": 20.0, **options}
    return dict(probing.probe_all([os.fspath(path) for path in paths], **options))


def test_damage_after_the_first_frames_is_detected(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    content = path.read_bytes()
    start, end = content.index(b"mdat"), content.rindex(b"moov") - 4
    middle = (start + end) // 2
    path.write_bytes(
        content[:middle] + bytes(end - middle) + content[end:]
    )  # an interrupted download
    with pytest.raises(decode.BadVideo, match="zeros in place of frames"):
        probing.probe_video(str(path))
    path.write_bytes(content[:middle] + b"?" * (end - middle) + content[end:])
    with pytest.raises(decode.BadVideo):
        probing.probe_video(str(path))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty file"), (b"no video", "Invalid"), (None, "No such file")]
)
def test_bad_files_have_a_reason(content, reason, tmp_path):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    ((_, failure),) = probe_all([path]).items()
    assert reason in failure.reason and failure.timeout is None
    assert not failure.reason.startswith(str(path))


def test_file_that_cannot_be_read_is_told_from_others(tmp_path, videos):
    good = [videos.write(tmp_path / f"{i}.mp4", options=X264) for i in range(4)]
    (tmp_path / "hang.mp4").write_bytes(b"hang")
    started = time.monotonic()
    paths = [good[0], tmp_path / "hang.mp4", *good[1:]]
    results = probe_all(paths, timeout=2.0, probe=probe_or_hang)
    assert time.monotonic() - started < 30
    assert results.pop(str(tmp_path / "hang.mp4")) == probing.ProbeFailure(
        "a read does not return within 2 seconds", transient=True
    )
    assert len(results) == 4 and {probe.frames for probe in results.values()} == {60}


def hang_on_b(path):
    if path == "b":
        time.sleep(30)
    return probing.VideoProbe(1.0, 1, 1, 1, 1.0, "none", 0, path)


@pytest.mark.parametrize("place", ["header", "frames", "digest"])
def test_errors_of_the_disk_are_read_errors(place, tmp_path, videos, monkeypatch):
    path = videos.write(tmp_path / "a.mkv", options=X264, frames=200)
    limit, read = {"header": 0, "frames": path.stat().st_size // 2}.get(place), io.FileIO.read

    def fail(file, size=-1):
        if place != "digest" and file.tell() >= limit:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file, min(size, limit - file.tell()) if limit else size)

    def fail_at_once(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(files_lib, "_RAW_READ", fail)
    if place == "digest":
        monkeypatch.setattr(probing, "digest_file", fail_at_once)
    failure = probing._SafeProbe(probing.probe_video)(str(path))
    expected = probing.ProbeFailure("Input/output error", transient=True, read_error=True)
    assert failure == expected


def test_decoder_that_hangs_exceeds_the_timeout():
    results = probe_all("abc", probe=hang_on_b, timeout=0.5)
    assert results["b"] == probing.ProbeFailure("no result within 0.5 seconds", 0.5)
    assert results["a"].digest == "a" and results["c"].digest == "c"


def crash_on_b(path):
    if path == "b":
        os.abort()
    if path == "d":
        raise decode.BadVideo("d: network") from OSError(errno.EIO, "gone")
    if path == "f":
        raise TypeError("a mistake in the code")
    return probing.VideoProbe(1.0, 1, 1, 1, 1.0, "none", 0, path)


def test_crash_affects_one_file():
    results = probe_all("abdef", probe=crash_on_b)
    assert "crashed (exit code -6)" in results["b"].reason and results["b"].transient
    assert results["d"] == probing.ProbeFailure("network", transient=True)
    assert results["f"] == probing.ProbeFailure("TypeError: a mistake in the code", transient=True)
    assert results["a"].digest == "a" and results["e"].digest == "e"


def test_closing_the_results_ends_the_processes(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    (tmp_path / "hang.mp4").write_bytes(b"hang")
    paths = [str(path), str(tmp_path / "hang.mp4")]
    results = probing.probe_all(paths, workers=2, timeout=60.0, probe=probe_or_hang)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 5


def probe_again(path, seeds):
    probing.probe_video(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_probing_does_not_leak_memory(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    worker = workers.ProcessWorker(measure_growth)
    grown = worker.call((probe_again, [str(path)], 300), 60)
    worker.close()
    assert grown < 50, f"{grown:.0f} bytes a file"  # an unclosed generator of PyAV leaks 200


def test_an_encrypted_file_is_called_so(tmp_path, videos):
    key = "00112233445566778899aabbccddeeff"
    container = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    path = videos.write(tmp_path / "a.mp4", options=X264, container=container)
    ((_, failure),) = probe_all([path]).items()
    assert failure == probing.ProbeFailure("encrypted")


def test_an_invalid_answer_of_a_worker_is_a_failure_of_its_video(tmp_path):
    paths = [str(tmp_path / "a.mp4")]
    ((_, result),) = probing.probe_all(
        paths, workers=1, timeout=20.0, probe=FakeProbe("a VideoProbe")
    )
    assert "does not match its task" in result.reason and result.transient


@dataclasses.dataclass(frozen=True)
class FakeProbe:
    result: str

    def __call__(self, path):
        return self.result
