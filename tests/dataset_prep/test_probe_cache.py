"""Cached results are valid as long as the file does not change."""

import dataclasses
import json
import os

import pytest

from invnext_jax.dataset_prep import indexing, probe_cache
from invnext_jax.dataset_prep.probe_cache import ProbeCache
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError
from invnext_jax.video_lists.video_list import VideoEntry

GOOD = VideoProbe(1.0, 8, 32, 32, 8.0, "h264", 0, "0123")


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "ä\udcff.mp4"  # a name that is not UTF-8
    path.write_bytes(b"x")
    return str(path)


def get(tmp_path, path, timeout=5.0):
    with ProbeCache(tmp_path / "probes.jsonl") as cache:
        return cache.get(path, timeout)


def put(tmp_path, path, result):
    with ProbeCache(tmp_path / "probes.jsonl") as cache:
        cache.put(path, result)


def test_changed_file_is_a_miss(tmp_path, video):
    assert get(tmp_path, video) is None
    put(tmp_path, video, GOOD)
    assert get(tmp_path, video) == GOOD
    os.utime(video, ns=(0, 5))
    assert get(tmp_path, video) is None
    put(tmp_path, video, ProbeFailure("bad"))
    assert get(tmp_path, video) == ProbeFailure("bad")
    os.remove(video)
    assert get(tmp_path, video) is None


def test_transient_failures_and_higher_limits_are_misses(tmp_path, video):
    put(tmp_path, video, ProbeFailure("network", transient=True))
    assert get(tmp_path, video) is None
    put(tmp_path, video, ProbeFailure("hung", timeout=5.0))
    assert get(tmp_path, video, 5.0) and get(tmp_path, video, 6.0) is None


def test_second_run_is_an_error(tmp_path):
    with (
        ProbeCache(tmp_path / "probes.jsonl"),
        pytest.raises(UserError, match="another run is writing"),
    ):
        ProbeCache(tmp_path / "probes.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        ProbeCache(tmp_path / "no" / "probes.jsonl")


def test_format_on_disk_does_not_change(tmp_path, video):
    put(tmp_path, video, ProbeFailure("hung", timeout=5.0))
    (line,) = (tmp_path / "probes.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["key"] == [video, 1, os.stat(video).st_mtime_ns]
    assert row["found"] == {"reason": "hung", "seconds": 5.0, "passing": False}


def forge(tmp_path, video, result, fields):
    """Writes a cache with a result whose fields have been changed."""
    put(tmp_path, video, result)
    path = tmp_path / "probes.jsonl"
    row = json.loads(path.read_text())
    row["found"] |= fields
    path.write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize("fields", [{"duration": "1"}, {"frames": 1.5}, {"index": 5}, {"codec": 0}])
def test_results_with_values_of_other_types_are_an_error(fields, tmp_path, video):
    forge(tmp_path, video, GOOD, fields)
    with pytest.raises(UserError, match="is damaged"):
        get(tmp_path, video)


@pytest.mark.parametrize(
    "fields",
    [{"duration": float("nan")}, {"fps": float("inf")}, {"frames": 0}, {"width": 10**400}],
)
def test_impossible_numbers_are_an_error(fields, tmp_path, video):
    forge(tmp_path, video, GOOD, fields)
    with pytest.raises(UserError, match="is damaged"):
        get(tmp_path, video)


def add_foreign(tmp_path, files, *rows):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"version": 2, **row}) + "\n" for row in rows))
    with ProbeCache(tmp_path / "probes.jsonl") as cache:
        cache.add_results_of(other, files)
        return cache._results


def test_other_caches_are_read_only_for_current_versions_of_listed_files(tmp_path, video):
    found, size, changed = dataclasses.asdict(GOOD), 1, os.stat(video).st_mtime_ns
    missing = str(tmp_path / "missing.mp4")
    keys = [[video, size, changed - 1], [video, 1.0, changed], [video, True, changed], [video]]
    keys += [[missing, None, None], [missing, 0, 0], [], [[video], size, changed]]
    rows = [{"key": key, "found": found} for key in keys]
    damaged = {"key": [video, size, changed], "found": {**found, "duration": float("nan")}}
    assert add_foreign(tmp_path, {video, missing}, *rows, damaged) == {}
    good = {"key": [video, size, changed], "found": found}
    assert add_foreign(tmp_path, {missing}, good) == {}
    assert add_foreign(tmp_path, {video, missing}, good) == {(video, size, changed): GOOD}


def test_large_other_caches_are_skipped(tmp_path, video, monkeypatch, caplog):
    monkeypatch.setattr(probe_cache, "MAX_BYTES", 10)
    row = {"key": [video, 1, os.stat(video).st_mtime_ns], "found": dataclasses.asdict(GOOD)}
    assert add_foreign(tmp_path, {video}, row) == {}
    assert "other.jsonl is skipped: Larger than 10 bytes" in caplog.text


def test_long_lines_and_files_are_refused(tmp_path, video, monkeypatch):
    path = tmp_path / "probes.jsonl"
    with open(path, "wb") as file:
        file.truncate(probe_cache.MAX_LINE_BYTES + 1)
    with pytest.raises(UserError, match="a line of more than .* delete the file"):
        get(tmp_path, video)
    assert path.stat().st_size == probe_cache.MAX_LINE_BYTES + 1  # not truncated
    with open(path, "wb") as file:
        file.truncate(probe_cache.MAX_BYTES + 1)
    with pytest.raises(UserError, match="has more than 8589934592 bytes"):
        get(tmp_path, video)
    path.unlink()
    monkeypatch.setattr(probe_cache, "MAX_LINE_BYTES", 1000)
    put(tmp_path, video, ProbeFailure("x" * 1000))  # it could not be read again
    assert path.read_bytes() == b""
    put(tmp_path, video, GOOD)
    assert get(tmp_path, video) == GOOD


def test_missing_files_are_not_cached(tmp_path):
    put(tmp_path, str(tmp_path / "missing.mp4"), GOOD)
    assert (tmp_path / "probes.jsonl").read_text() == ""
    row = {"key": ["missing.mp4", None, None], "version": 2, "found": dataclasses.asdict(GOOD)}
    (tmp_path / "probes.jsonl").write_text(json.dumps(row) + "\n")
    assert get(tmp_path, "missing.mp4") is None


def test_clips_with_a_negative_start_are_not_in_the_manifest():
    entries = [VideoEntry("a.mp4", "s", start=start) for start in (-1e308, 0.0)]
    clean, quarantine = indexing._split_entries(entries, {"a.mp4": GOOD})
    assert clean == [(entries[1], GOOD)]
    assert quarantine == [("a.mp4", "the start, -1e+308 seconds, must not be negative")]


def test_deeply_nested_results_are_an_error(tmp_path, video):
    (tmp_path / "probes.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="is damaged"):
        get(tmp_path, video)


def test_a_name_that_no_file_can_have_is_a_miss(tmp_path):
    assert get(tmp_path, "a\0b") is None


def test_results_of_an_earlier_version_are_ignored(tmp_path, video):
    put(tmp_path, video, ProbeFailure("bad"))
    text = (tmp_path / "probes.jsonl").read_text()
    (tmp_path / "probes.jsonl").write_text(text.replace('"version": 2, ', ""))
    assert get(tmp_path, video) is None


def test_cached_reasons_that_no_file_can_contain_are_refused(tmp_path, video):
    forge(tmp_path, video, ProbeFailure("a"), {"reason": "a\ud800"})
    with pytest.raises(UserError, match="is damaged: delete it to probe all files again"):
        get(tmp_path, video)


@pytest.mark.parametrize("fields", [{"duration": 3e9}, {"fps": -1.0}, {"frames": 0}])
def test_invalid_results_do_not_damage_the_cache(fields, tmp_path, video):
    put(tmp_path, video, dataclasses.replace(GOOD, **fields))
    assert get(tmp_path, video) is None
    put(tmp_path, video, GOOD)
    assert get(tmp_path, video) == GOOD
