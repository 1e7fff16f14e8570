"""Jobs are identified by the content of their data: manifests, videos, and files of evaluators."""

import shutil

import pytest

from invnext_jax.checkpointing import video_digests
from invnext_jax.sweeps import identity
from invnext_jax.sweeps.arms import Arm, Step, chain
from invnext_jax.sweeps.expansion import expand
from invnext_jax.sweeps.step_config import load_step
from invnext_jax.sweeps.sweep_file import Sweep

STAGE1, PROBE = "configs/stage1.py:tiny", "configs/eval/tasks/linear_probe.py:tiny"
ANTICIPATION = "configs/eval/tasks/anticipation.py"
ZERO_SHOT = "configs/eval/tasks/zero_shot.py:tiny"
VIDEOS = 64


def write_data(folder, content="a", videos=VIDEOS, splits=("train", "val")):
    """Writes a manifest for each split whose text does not depend on the content of the videos."""
    folder.mkdir(exist_ok=True)
    for split in splits:
        names = [f"{split}{number}.mp4" for number in range(videos)]
        for name in names:
            (folder / name).write_text(f"{content} {name}")
        rows = "".join(f"{name},mine,{i % 2}\n" for i, name in enumerate(names))
        (folder / f"{split}.csv").write_text("path,source,label_class\n" + rows)
    return folder


def hash_step(config, **overrides):
    """Hashes a step as in a new command."""
    identity.digest_videos.cache_clear()
    step = Step("step", config, {n.replace("__", "."): v for n, v in overrides.items()})
    return identity.hash_step(load_step(step, None), "source")


def hash_training(folder, **overrides):
    return hash_step(STAGE1, data__manifest=str(folder / "train.csv"), **overrides)


def hash_probe(folder, config=PROBE, **overrides):
    paths = {"data__root": str(folder), "train_manifest": "train.csv", "val_manifest": "val.csv"}
    return hash_step(config, **paths, **overrides)


@pytest.mark.parametrize("make_hash", [hash_training, hash_probe])
def test_manifests_with_equal_text_and_different_videos_are_different_jobs(tmp_path, make_hash):
    first = write_data(tmp_path / "raw")
    other = write_data(tmp_path / "small", "b")
    moved = shutil.copytree(first, tmp_path / "moved")
    assert (first / "train.csv").read_text() == (other / "train.csv").read_text()
    assert make_hash(first) == make_hash(moved) != make_hash(other)


def test_replaced_videos_are_other_jobs_of_the_next_command(tmp_path):
    data = write_data(tmp_path / "data")
    probe = {"data.root": str(data), "train_manifest": "train.csv", "val_manifest": "val.csv"}
    steps = chain(stage1=STAGE1, probe=PROBE)
    overrides = {"stage1": {"data.manifest": str(data / "train.csv")}, "probe": probe}
    steps = tuple(step.with_overrides(overrides[step.name]) for step in steps)

    def find_jobs():
        sweep, _ = expand(Sweep("test", (Arm("a", steps),), {}), tmp_path / "sweep")
        return sweep.arms[0].jobs

    before = find_jobs()
    assert find_jobs() == before
    write_data(data, "new", splits=["val"])
    after = find_jobs()
    assert after["stage1"] == before["stage1"] and after["probe"] != before["probe"]


def test_videos_of_a_manifest_are_read_once_in_a_command(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    found, digest = [], video_digests.video_io.digest_file

    def count(path):
        found.append(path)
        return digest(path)

    monkeypatch.setattr(video_digests.video_io, "digest_file", count)
    options = {"data.manifest": str(data / "train.csv")}
    arms = [Arm(f"{s}", (Step("stage1", STAGE1, options),), seed=s) for s in (0, 1, 2)]
    sweep, _ = expand(Sweep("test", tuple(arms), {}), tmp_path / "sweep")
    assert len(sweep.jobs) == 3 and len(found) == VIDEOS


def test_a_sample_of_the_videos_of_large_manifests_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(video_digests, "_MAX_ROWS", 10)
    data = write_data(tmp_path / "data")
    before = hash_training(data)
    (data / "train1.mp4").write_text("not in the sample")
    assert hash_training(data) == before
    (data / f"train{VIDEOS - 1}.mp4").write_text("in the sample")
    assert hash_training(data) != before


def test_videos_that_cannot_be_read_are_identified_by_the_manifest(tmp_path, caplog):
    first, other = write_data(tmp_path / "a"), write_data(tmp_path / "b", "b")
    for path in [*first.glob("*.mp4"), *other.glob("*.mp4")]:
        path.unlink()
    assert hash_training(first) == hash_training(other)
    assert f"64 of the 64 videos that identify {other / 'train.csv'} cannot be read" in caplog.text


def test_videos_of_online_evaluations_count_if_they_are_used(tmp_path):
    train = write_data(tmp_path / "train")
    first, other = write_data(tmp_path / "a"), write_data(tmp_path / "b", "b")

    def make_hash(folder, steps):
        manifest = str(folder / "val.csv")
        return hash_training(train, eval__manifest=manifest, eval__every_steps=steps)

    assert make_hash(first, 5) != make_hash(other, 5)
    assert make_hash(first, 0) == make_hash(other, 0) == hash_training(train)


def test_options_of_online_evaluations_count_if_they_are_used(tmp_path):
    data = write_data(tmp_path / "data")
    unused = {"eval__neighbors": 3, "log__every_steps": 7}
    assert hash_training(data) == hash_training(data, **unused)
    used = {"eval__every_steps": 10, "eval__manifest": str(data / "val.csv")}
    first = hash_training(data, **used)
    assert first == hash_training(data, **used, log__every_steps=7)
    for changes in ({"neighbors": 3}, {"videos": 8}, {"every_steps": 20}):
        options = used | {f"eval__{name}": value for name, value in changes.items()}
        assert hash_training(data, **options) != first


def test_manifests_of_an_evaluator_count_by_content(tmp_path):
    data = write_data(tmp_path / "data")
    own = {f"anticipation__{split}_manifest": f"own/{split}.csv" for split in ("train", "val")}
    write_data(data / "own")
    before = hash_probe(data, ANTICIPATION, **own)
    moved = shutil.copytree(data, tmp_path / "moved")
    (data / "own").rename(data / "renamed")
    renamed = {name: path.replace("own", "renamed") for name, path in own.items()}
    assert hash_probe(data, ANTICIPATION, **renamed) == before
    assert hash_probe(moved, ANTICIPATION, **own) == before
    write_data(moved / "own", "b", splits=["val"])
    assert hash_probe(moved, ANTICIPATION, **own) != before


def test_captions_next_to_the_manifest_count(tmp_path):
    data = write_data(tmp_path / "data")
    before = hash_probe(data, ZERO_SHOT), hash_probe(data)
    (data / "val.captions.jsonl").write_text('{"caption": "a cat"}\n')
    after = hash_probe(data, ZERO_SHOT), hash_probe(data)
    assert after[0] != before[0] and after[1] == before[1]
