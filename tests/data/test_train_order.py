"""Shuffling in blocks: every row once per epoch, few open files, exact resume."""

import functools
import itertools

import numpy as np
import pytest
from array_record.python import array_record_module
from batches import assert_equal, next_batches
from fakes import FakeLoad, OpenCountingLoad

from configs import common
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, shards, train_order
from invnext_jax.data.clips import LoadClip

SIZES = [30, 1, 70, 25, 50, 24] * 4  # rows of each shard: 800 in all
BLOCK = 150


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The path of a manifest of shards that do not exist, and the shard of each row."""
    path = tmp_path_factory.mktemp("listed") / "list.csv"
    places = [(file, record) for file, size in enumerate(SIZES) for record in range(size)]
    lines = [f"{file}.array_record,{record},{'ab'[file % 2]}\n" for file, record in places]
    path.write_text("path,record,source\n" + "".join(lines))
    return path, np.array([file for file, _ in places])


@pytest.fixture(scope="module")
def manifest(listed):
    return manifest_lib.read_manifest(listed[0])


def order(manifest, count, *, weights=(), rows=None, start=0, seed=0, size=BLOCK):
    mix = train_order.Mixture(manifest, weights, seed, rows, size)
    return [mix.get_video(number).index for number in range(start, start + count)]


@pytest.mark.parametrize("size", [1, 7, BLOCK, 800, 10**6])
@pytest.mark.parametrize("step", [1, 3])
def test_every_row_occurs_once_in_an_epoch(manifest, size, step):
    rows = range(0, len(manifest), step)
    found = order(manifest, 2 * len(rows), rows=rows, size=size)
    first, second = found[: len(rows)], found[len(rows) :]
    assert sorted(first) == sorted(second) == list(rows)
    assert first != second != list(rows)
    assert order(manifest, 20, rows=rows, size=size, seed=1) != found[:20]


def test_each_pass_over_a_weighted_source_has_all_its_rows(manifest):
    found = order(manifest, 6000, weights=(("a", 3), ("b", 1)))
    counts = {name: manifest.sources.count(name) for name in "ab"}
    of_source = {n: [row for row in found if manifest.sources[row] == n] for n in "ab"}
    assert len(of_source["a"]) == pytest.approx(4500, abs=3)
    for name, rows in of_source.items():
        passes = [rows[i : i + counts[name]] for i in range(0, len(rows), counts[name])]
        assert all(len(set(one)) == len(one) for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes) > 1


def test_any_position_is_computed_without_earlier_ones(manifest):
    for weights in ((), (("a", 1), ("b", 2.5))):
        full = order(manifest, 1700, weights=weights)
        assert order(manifest, 900, weights=weights, start=800) == full[800:]
        assert order(manifest, 1, weights=weights, start=10**9)  # far ahead


def test_a_block_has_all_its_rows_from_few_files_in_random_order(manifest, listed):
    found, blocks = order(manifest, 800), -(-800 // BLOCK)
    ends = [800 * n // blocks for n in range(blocks + 1)]
    files_of_blocks = [listed[1][found[a:b]] for a, b in itertools.pairwise(ends)]
    for files in files_of_blocks:
        counts = np.bincount(files)
        # Only the first and the last file of a block may continue in another block.
        assert sum(counts[file] < SIZES[file] for file in set(files)) <= 2
        # Neighbors are from different files about as often as in a global shuffle of the block.
        expected = 1 - ((counts / counts.sum()) ** 2).sum()
        assert (np.diff(files) != 0).mean() == pytest.approx(expected, abs=0.15)
    assert sum(len(set(files)) for files in files_of_blocks) <= len(SIZES) + blocks


def test_files_ahead_are_those_of_the_next_block(manifest, listed):
    mix = train_order.Mixture(manifest, (), 0, None, BLOCK)
    (shuffle,) = mix.blocks
    found = order(manifest, 800)
    length = 800 // shuffle.blocks
    names = np.array(manifest.paths)
    ahead = {mix.get_file_ahead(position) for position in range(length)}
    assert ahead == set(names[found[length : 2 * length + 1]])
    assert mix.get_file_ahead(799) in set(names[order(manifest, length, start=800)])
    assert train_order.Mixture(manifest, (), 0).get_file_ahead(5) is None


def test_the_number_of_files_is_described(manifest):
    mix = train_order.Mixture(manifest, (), 0, None, BLOCK)
    text = "shuffled in blocks of rows from about 5 of 24 files at a time"
    assert mix.describe_blocks() == text
    assert train_order.Mixture(manifest, (), 0).describe_blocks() == ""


def test_too_many_files_in_a_block_are_a_warning(manifest, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN", 4)
    text = train_order.Mixture(manifest, (), 0, None, BLOCK).describe_blocks()
    assert "a worker keeps only 4 shards open: reduce config.data.shuffle_block_size" in text


@pytest.mark.parametrize("weights", [(), (("a", 1.0), ("b", 2.0))])
def test_batches_are_equal_after_a_resume_and_on_several_processes(listed, weights):
    config = common.data()
    config.update(manifest=str(listed[0]), workers=0, shuffle_block_size=BLOCK, weights=weights)
    read = functools.partial(next_batches, config, batch_size=6, load=FakeLoad(bad=(3, 8)))
    full, _ = read(8)
    config.workers = 2
    first, state = read(3)
    second, _ = read(5, state=state)
    assert_equal(first + second, full)
    parts = [read(8, positions=range(3 * i, 3 * i + 3))[0] for i in (0, 1)]
    joined = [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*parts, strict=True)]
    assert_equal(joined, full)


@pytest.mark.parametrize(("positions", "processes"), [(6, 1), (2, 2), (2, 1)])
def test_whole_shards_are_read_ahead_if_the_host_loads_most_clips(
    positions, processes, listed, tmp_path
):
    config, log = common.data(), tmp_path / "log"
    log.touch()
    config.update(manifest=str(listed[0]), workers=1, shuffle_block_size=BLOCK)
    fields = {"positions": range(positions), "processes": processes}
    next_batches(config, 8, batch_size=6, load=FakeLoad(prefetch_log=str(log)), **fields)
    lines = log.read_text().splitlines()
    names = {str(listed[0].parent / f"{file}.array_record") for file in range(len(SIZES))}
    ahead = {line.removeprefix("ahead ") for line in lines if line.startswith("ahead ")}
    assert ahead <= names and bool(ahead) == (positions * processes >= 3)
    assert any(not line.startswith("ahead ") for line in lines)


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory):
    """The path of a manifest of 8 shards with 256 short records each, the default."""
    folder = tmp_path_factory.mktemp("small")
    lines = ["path,record,source\n"]
    for file in range(8):
        path = folder / f"{file}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in range(256):
            writer.write(b"")
            lines.append(f"{path.name},{record},a\n")
        writer.close()
    (folder / "list.csv").write_text("".join(lines))
    return folder / "list.csv"


def clips_per_open(manifest, clips, size):
    """Returns how many clips three workers, which keep four shards open, read for each opening."""
    config = common.data()
    config.update(manifest=str(manifest), workers=3, shuffle_block_size=size)
    dataset = pipeline.make_train_dataset(config, seed=0, batch_size=32, load=OpenCountingLoad(4))
    iterator = iter(dataset)
    batches = [next(iterator) for _ in range(clips // 32)]
    iterator.close()
    processes = np.concatenate([batch["process"] for batch in batches])
    opened = np.concatenate([batch["opened"] for batch in batches])
    return clips / sum(opened[processes == process].max() for process in set(processes))


def test_blocks_open_at_most_one_file_in_fifty_clips(small_shards):
    # Even without the preference of workers for open shards, each of three opens each shard once.
    assert clips_per_open(small_shards, 8 * 256, size=3 * 256) >= 50
    assert clips_per_open(small_shards, 128, size=0) < 3


def test_a_shard_is_read_ahead_once(tmp_path, monkeypatch):
    advised = []
    monkeypatch.setattr(shards.os, "posix_fadvise", lambda *call: advised.append(call[1:]))
    shards.read_ahead.cache_clear()
    (tmp_path / "shard").write_bytes(b"content")
    record = manifest_lib.VideoRecord(0, "missing", "a", None, None, {}, 3)
    load = LoadClip.from_config(common.data())
    for name in ("shard", "shard", "missing"):
        load.prefetch(record, str(tmp_path / name))
    assert advised == [(0, 0, shards.os.POSIX_FADV_WILLNEED)]
    load.prefetch(record)
