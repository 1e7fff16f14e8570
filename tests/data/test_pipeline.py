import csv
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from batches import assert_equal, next_batches, row_order

from invnext_jax.data import decode, pipeline
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec


@pytest.fixture
def config(world_config):
    return world_config


def test_batches_have_the_documented_arrays(config, world_folder):
    batches, _ = next_batches(config, 3)
    with (world_folder / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    for batch in batches:
        assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
            "video": ((5, 4, 32, 32, 3), "uint8"),
            "index": ((5,), "int32"),
            "label_shape": ((5,), "int32"),
            "label_color": ((5,), "int32"),
            "label_motion": ((5,), "int32"),
        }
        for i, row in enumerate(batch["index"]):
            for task in ("shape", "color", "motion"):
                assert batch[f"label_{task}"][i] == int(rows[row][f"label_{task}"])


@pytest.mark.parametrize("count", [1, 2])
def test_batches_do_not_depend_on_workers(count, with_bad_videos):
    config = with_bad_videos
    alone, _ = next_batches(config, 5)
    config.workers = count
    together, _ = next_batches(config, 5)
    assert_equal(alone, together)


@pytest.mark.parametrize("count", [0, 2])
def test_resuming_is_exact(count, with_bad_videos):
    config = with_bad_videos
    config.workers = count
    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=5))
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(5)]
    iterator.close()
    assert_equal(next_batches(config, 5, state=state)[0], expected)


def test_the_iterator_is_saved_by_orbax(config, tmp_path):
    def manager():
        return ocp.CheckpointManager(tmp_path / "checkpoint")

    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=5))
    next(iterator), next(iterator)
    with manager() as saver:
        args = ocp.args.Composite(data=ocp.args.JsonSave(iterator.get_state()))
        saver.save(2, args=args)
        saver.wait_until_finished()
    expected = [next(iterator) for _ in range(3)]
    fresh = iter(pipeline.make_train_dataset(config, seed=0, batch_size=5))
    with manager() as saver:
        args = ocp.args.Composite(data=ocp.args.JsonRestore())
        fresh.set_state(saver.restore(2, args=args)["data"])
    assert_equal(expected, [next(fresh) for _ in range(3)])
    iterator.close(), fresh.close()


def test_every_epoch_has_every_video_in_another_order(config):
    got = row_order(next_batches(config, 9, batch_size=4)[0])
    epochs = [got[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_orders_of_different_seeds_share_no_epoch(config):
    orders = [row_order(next_batches(config, 6, batch_size=4, seed=seed)[0]) for seed in (0, 1, 2)]
    epochs = [tuple(o[i : i + 12]) for o in orders for i in (0, 12)]
    assert len(set(epochs)) == len(epochs)


def test_processes_together_make_the_batch_of_one(config):
    config.crop_scales = (1.0, 0.75, 0.5)
    (full,), _ = next_batches(config, 1, batch_size=12)
    parts = [
        next_batches(config, 1, batch_size=12, positions=positions)[0][0]
        for positions in (range(4), [4, 5, 10, 11], [6, 7, 8, 9])
    ]
    for positions, part in zip((range(4), [4, 5, 10, 11], [6, 7, 8, 9]), parts, strict=True):
        for name in full:
            np.testing.assert_array_equal(part[name], full[name][list(positions)])
    assert sorted(np.concatenate([part["index"] for part in parts])) == list(range(12))


def test_bad_videos_are_dropped_counted_and_logged_once(with_bad_videos, caplog):
    bad_videos = BadVideoTracker()
    batches, _ = next_batches(
        with_bad_videos, 12, batch_size=4, bad_videos=bad_videos
    )  # batches of four epochs
    got = row_order(batches)
    assert set(got) == set(range(12)) - {2, 7}
    assert bad_videos.delivered == 48 and bad_videos.dropped >= 8
    assert [name.split("/")[-1] for name in sorted(bad_videos.reasons)] == [
        "000002.mp4",
        "000007.mp4",
    ]
    for name in bad_videos.reasons:
        assert sum(name in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_no_readable_video_is_a_user_error(count, config, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,source\n" + "".join(f"{i}.mp4,a\n" for i in range(3)))
    config.update(manifest=str(path), workers=count)
    with pytest.raises(UserError, match=r"no readable video.*\.mp4"):
        next_batches(config, 1)
    with pytest.raises(UserError, match="no readable video"):
        list(pipeline.make_eval_dataset(config, manifest=str(path), batch_size=2))


@pytest.mark.parametrize(("stride", "short"), [(2, 0), (4, 12)])  # the videos have 8 frames
def test_clips_longer_than_their_video_are_counted_and_logged_once(config, caplog, stride, short):
    config.update(sampling="dense", stride=(stride, stride), repeats=2)
    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=6))
    for _ in range(2):
        assert "missing_frames" not in next(iterator)
    counts, summary = iterator.counts(), iterator.summary()
    iterator.close()
    assert counts == {"dropped_videos": 0, "short_clips": short, "failed_reads": 0}
    assert (f"{short} of videos with fewer frames than a clip" in summary) == bool(short)
    found = [r.getMessage() for r in caplog.records if "fewer than a clip can span" in r.message]
    assert len(found) == bool(short)
    assert all(".mp4 has 5 frames fewer" in message for message in found)


def test_only_some_sources_are_flipped(config, world_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(world_folder, folder)
    text = (folder / "train.csv").read_text()
    (folder / "other.csv").write_text(text.replace(",world,", ",k400,"))
    config.frames = 8
    config.crop_scales = (1.0,)

    def mirrored(manifest):
        config.manifest = str(folder / manifest)
        flipped = []
        for batch in next_batches(config, 12, batch_size=4)[0]:
            for video, index in zip(batch["video"], batch["index"], strict=True):
                plain = decode.read_frames(folder / "train" / f"{index:06d}.mp4", range)
                assert (video == plain).all() or (video == plain[:, :, ::-1]).all()
                flipped.append(not (video == plain).all())
        return np.mean(flipped)

    assert mirrored("train.csv") == 0
    assert 0.2 < mirrored("other.csv") < 0.8
    (folder / "sthv2.csv").write_text(text.replace(",world,", ",Something-Something-V2,"))
    assert mirrored("sthv2.csv") == 0


def test_training_frames_are_redrawn_each_epoch(config, tmp_path):
    write_world(WorldSpec(frames=16), tmp_path, 2, progress=False)
    config.update(manifest=str(tmp_path / "train.csv"), crop_scales=(1.0,))
    batches, _ = next_batches(config, 6, batch_size=2)
    first = [b["video"][b["index"].tolist().index(0)].tobytes() for b in batches]
    assert len(set(first)) == 6


def test_several_manifests_are_read_as_one(config, world_folder, tmp_path):
    other = tmp_path / "other, with a comma.csv"
    path = world_folder / "train" / "000001.mp4"
    other.write_text(f"path,source,label_class,label_shape\n{path},mine,5,2\n")
    assert len(manifest_lib.read_manifest(other)) == 1  # the name of an existing file is not split
    other = other.rename(tmp_path / "other.csv")
    config.manifest = f"{world_folder}/train.csv, {other}, world:simple/val?videos=2"
    manifest = manifest_lib.read_manifest(config.manifest)
    assert [record.index for record in manifest] == list(range(15))
    assert manifest.sources == ["world"] * 12 + ["mine"] + ["world"] * 2
    assert manifest.labels["label_class"].tolist() == [-1] * 12 + [5] + [-1] * 2
    assert manifest.labels["label_color"][12] == -1 and manifest.labels["label_shape"][12] == 2
    (batch,) = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=15)
    assert batch["index"].tolist() == list(range(15))
    np.testing.assert_array_equal(batch["video"][12], batch["video"][1])
    assert batch["label_class"].tolist() == manifest.labels["label_class"].tolist()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_exit_with_their_parent(config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            from configs import common
            from invnext_jax.data import pipeline
            from fakes import FakeLoad, worker_pids

            config = common.data()
            config.update(manifest=sys.argv[1], workers=2)
            options = dict(seed=0, batch_size=1)
            first = pipeline.make_train_dataset(config, **options).mixture.get_video(0, 0).index
            hangs = tuple(row for row in range(12) if row != first)
            dataset = pipeline.make_train_dataset(config, **options, load=FakeLoad(hangs=hangs))
            next(iter(dataset))
            print(*worker_pids(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    places = os.pathsep.join([os.getcwd(), f"{os.getcwd()}/tests/support"])
    command = [sys.executable, script, config.manifest]
    # Not through pipes: remaining workers would keep them open.
    with (tmp_path / "out").open("w+") as out:
        environment = {**os.environ, "PYTHONPATH": places}
        subprocess.run(command, env=environment, stdout=out, timeout=60, check=False)
        children = [int(number) for number in (tmp_path / "out").read_text().split()]
    assert len(children) == 2
    deadline = time.monotonic() + 10  # less than the sleep of the busy worker
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))
