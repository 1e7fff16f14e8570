import csv
import gc
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from batches import assert_equal, take
from stand_ins import Load, children

from configs import common
from invnext_jax.data import decode, pipeline
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec


@pytest.fixture
def config(world_folder):
    config = common.data()
    config.update(manifest=str(world_folder / "train.csv"), frames=4, size=32, short_side=32)
    config.update(workers=0, prefetch=4)
    return config


def order(batches):
    return np.concatenate([batch["index"] for batch in batches]).tolist()


@pytest.fixture
def with_bad_videos(config, world_folder, tmp_path):
    """The world with rows 2 and 7 broken."""
    folder = tmp_path / "bad"
    shutil.copytree(world_folder, folder)
    (folder / "train" / "000002.mp4").write_bytes(b"no video")
    (folder / "train" / "000007.mp4").unlink()
    config.manifest = str(folder / "train.csv")
    return config


def test_batches_are_what_the_contract_says(config, world_folder):
    batches, _ = take(config, 3)
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
def test_workers_change_nothing(count, with_bad_videos):
    config = with_bad_videos
    alone, _ = take(config, 5)
    config.workers = count
    together, _ = take(config, 5)
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
    assert_equal(take(config, 5, state=state)[0], expected)


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
    got = order(take(config, 9, batch_size=4)[0])
    epochs = [got[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_seeds_give_orders_that_are_not_each_others_later_epochs(config):
    orders = [order(take(config, 6, batch_size=4, seed=seed)[0]) for seed in (0, 1, 2)]
    epochs = [tuple(o[i : i + 12]) for o in orders for i in (0, 12)]
    assert len(set(epochs)) == len(epochs)


def test_processes_share_the_order_and_the_augmentation_of_one(config):
    config.crop_scales = (1.0, 0.75, 0.5)
    (whole,), _ = take(config, 1, batch_size=12)
    parts = [
        take(config, 1, batch_size=4, process_index=i, process_count=3)[0][0] for i in (0, 1, 2)
    ]
    for i, part in enumerate(parts):
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][4 * i : 4 * i + 4])
    assert sorted(np.concatenate([part["index"] for part in parts])) == list(range(12))


def test_bad_videos_are_dropped_counted_and_named_once(with_bad_videos, caplog):
    drops = BadVideoTracker()
    batches, _ = take(with_bad_videos, 12, batch_size=4, drops=drops)  # four epochs
    got = order(batches)
    assert set(got) == set(range(12)) - {2, 7}
    assert drops.delivered == 48 and drops.dropped >= 8
    assert [name.split("/")[-1] for name in sorted(drops.names)] == ["000002.mp4", "000007.mp4"]
    for name in drops.names:
        assert sum(name in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_no_readable_video_is_the_users_error(count, config, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,source\n" + "".join(f"{i}.mp4,a\n" for i in range(3)))
    config.update(manifest=str(path), workers=count)
    with pytest.raises(UserError, match=r"no readable video.*\.mp4"):
        take(config, 1)
    with pytest.raises(UserError, match="no readable video"):
        list(pipeline.make_eval_dataset(config, manifest=str(path), batch_size=2))


def test_flips_follow_the_source(config, world_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(world_folder, folder)
    text = (folder / "train.csv").read_text()
    (folder / "other.csv").write_text(text.replace(",world,", ",k400,"))
    config.frames = 8
    config.crop_scales = (1.0,)

    def mirrored(manifest):
        config.manifest = str(folder / manifest)
        found = []
        for batch in take(config, 12, batch_size=4)[0]:
            for video, index in zip(batch["video"], batch["index"], strict=True):
                plain = decode.read_frames(folder / "train" / f"{index:06d}.mp4", range)
                assert (video == plain).all() or (video == plain[:, :, ::-1]).all()
                found.append(not (video == plain).all())
        return np.mean(found)

    assert mirrored("train.csv") == 0
    assert 0.2 < mirrored("other.csv") < 0.8


def test_training_frames_are_drawn_anew_each_epoch(config, tmp_path):
    write_world(WorldSpec(frames=16), tmp_path, 2, progress=False)
    config.update(manifest=str(tmp_path / "train.csv"), crop_scales=(1.0,))
    batches, _ = take(config, 6, batch_size=2)
    first = [b["video"][b["index"].tolist().index(0)].tobytes() for b in batches]
    assert len(set(first)) == 6


@pytest.mark.parametrize("count", [0, 3])
def test_evaluation_keeps_the_order_and_pads_the_end(count, config):
    config.workers = count
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5)
    config.manifest = ""
    batches = list(dataset)
    assert len(batches) == len(dataset) == 3
    assert order(batches) == [*range(12), -1, -1, -1]
    assert not batches[-1]["video"][2:].any()
    assert_equal(batches, list(dataset))
    path = dataset.manifest[3].path
    np.testing.assert_array_equal(
        batches[0]["video"][3], decode.read_frames(path, lambda _: [1, 3, 5, 7])
    )


def test_evaluation_drops_and_counts_bad_videos(with_bad_videos):
    config = with_bad_videos
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5)
    assert order(dataset) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    assert dataset.drops.dropped == 2 and dataset.drops.delivered == 10


@pytest.mark.parametrize(("workers", "kind"), [(0, "time limit"), (1, "worker died")])
def test_evaluation_survives_a_decoder_that_hangs_or_dies(workers, kind, config):
    config.update(workers=workers, clip_seconds=0.5)
    load = Load(**{"hangs" if kind == "time limit" else "dies": (3,)})
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5, load=load)
    start = time.monotonic()
    assert order(dataset) == [0, 1, 2, *range(4, 12), -1, -1, -1, -1]
    assert time.monotonic() - start < 25
    assert dataset.drops.kinds == {kind: 1} and dataset.drops.delivered == 11


def test_an_evaluation_left_early_ends_its_workers(config):
    config.workers = 1
    before = set(threading.enumerate())
    batches = iter(pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=2))
    next(batches)
    batches.close()
    assert not children()
    assert set(threading.enumerate()) <= before


def test_several_manifests_are_read_as_one(config, world_folder, tmp_path):
    other = tmp_path / "other, with a comma.csv"
    path = world_folder / "train" / "000001.mp4"
    other.write_text(f"path,source,label_class,label_shape\n{path},mine,5,2\n")
    assert len(manifest_lib.read_manifest(other)) == 1  # a name that exists is one name
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
def test_workers_die_with_their_parent(config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            from configs import common
            from invnext_jax.data import pipeline
            from stand_ins import Load, children

            config = common.data()
            config.update(manifest=sys.argv[1], workers=2)
            options = dict(seed=0, batch_size=1)
            first = pipeline.make_train_dataset(config, **options).mixture.choose(0, 0).index
            hangs = tuple(row for row in range(12) if row != first)
            dataset = pipeline.make_train_dataset(config, **options, load=Load(hangs=hangs))
            next(iter(dataset))
            print(*children(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    places = os.pathsep.join([os.getcwd(), f"{os.getcwd()}/tests"])
    command = [sys.executable, script, config.manifest]
    # Not through pipes: those that are left would hold them open.
    with (tmp_path / "out").open("w+") as out:
        environment = {**os.environ, "PYTHONPATH": places}
        subprocess.run(command, env=environment, stdout=out, timeout=60, check=False)
        children = [int(number) for number in (tmp_path / "out").read_text().split()]
    assert len(children) == 2
    deadline = time.monotonic() + 10  # less than what the busy one sleeps
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_passes_leave_no_open_files_behind(config):
    config.workers = 2
    dataset = pipeline.make_eval_dataset(
        config, manifest=config.manifest, batch_size=6, load=Load()
    )
    list(dataset)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert order(dataset) == [*range(12)]
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()
