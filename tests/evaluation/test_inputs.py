"""Inputs of evaluators: shared features, and the hash of the videos."""

import shutil

import numpy as np
import pytest
from oracle_encoder import make_blind, make_inputs, resolve

from configs.eval.tasks import attentive_probe as probe_config
from configs.eval.tasks import zero_shot
from invnext_jax.data.access_rules import DEFAULT_RULES
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data
from invnext_jax.evaluation.evaluation_data import hash_videos
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.synthetic_world import urls


@pytest.fixture
def manifest(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number]) * 100)
    rows = "".join(f"{number}.mp4,x\n" for number in range(40))
    (tmp_path / "a.csv").write_text("path,source\n" + rows)
    return tmp_path / "a.csv"


def test_each_file_counts_but_not_its_place(manifest, tmp_path):
    first = hash_videos(str(manifest), DEFAULT_RULES, 60.0)
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert hash_videos(str(tmp_path / "moved" / "a.csv"), DEFAULT_RULES, 60.0) == first
    for name in ("7.mp4", "39.mp4"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"other")
        assert hash_videos(str(manifest), DEFAULT_RULES, 60.0) != first
        (tmp_path / name).unlink()
        assert hash_videos(str(manifest), DEFAULT_RULES, 60.0) != first
        (tmp_path / name).write_bytes(content)
    assert hash_videos(str(manifest), DEFAULT_RULES, 60.0) == first


def test_rendered_worlds_add_nothing(manifest, monkeypatch):
    monkeypatch.setattr(urls, "label_columns", None)  # the rows are not generated
    joined = f"{manifest},world:simple/train?videos=3"
    assert hash_videos(joined, DEFAULT_RULES, 60.0) == hash_videos(
        str(manifest), DEFAULT_RULES, 60.0
    )
    world = "world:simple/train?videos=100000"
    assert hash_videos(world, DEFAULT_RULES, 60.0) != hash_videos(
        str(manifest), DEFAULT_RULES, 60.0
    )


def test_rendered_worlds_are_not_in_the_folder_of_the_data_set():
    config = probe_config.get_config("tiny")
    config.data.root = "data/k400"
    config.update(train_manifest="train.csv,world:simple/train", val_manifest="gs://a/val.csv")
    config = evaluation_data.resolve(config, make_blind(size=16, frames=2))
    assert config.train_manifest == "data/k400/train.csv,world:simple/train"
    assert config.val_manifest == "gs://a/val.csv"


def test_long_clips_of_the_encoder_are_not_the_default():
    config, encoder = probe_config.get_config("tiny"), make_blind(size=512, frames=64)
    config.data.update(frames=0, size=0)
    patches = 64 * (512 // encoder.patch) ** 2
    with pytest.raises(UserError, match=f"have {patches:,} patches.*: set config.data.frames and"):
        evaluation_data.resolve(config, encoder)
    config.data.update(frames=64, size=512)
    assert evaluation_data.resolve(config, encoder).data.frames == 64


def test_worlds_smaller_than_the_clips_are_noted():
    config = probe_config.get_config("tiny")
    worlds = {f"{split}_manifest": f"world:simple/{split}?videos=4" for split in ("train", "val")}
    config.update(worlds)
    config.data.workers = 0
    for size, count in ((32, 0), (64, 2)):
        resolved = evaluation_data.resolve(config, make_blind(size=size, frames=8))
        dataset = evaluation_data.EvaluationData(resolved, ("shape",))
        assert (
            sum(
                "pixels, which are enlarged: set size=64 to" in note
                for note in dataset.describe_videos()
            )
            == count
        )


def test_encoder_runs_once_for_pooled_features_and_tokens(tmp_path, monkeypatch):
    encoder = make_blind(size=16, frames=2)
    config = resolve(
        probe_config.get_config("tiny"), encoder, "simple?videos=6&size=16&frames=2", batch_size=4
    )
    plain = make_inputs(config, encoder, tmp_path / "plain")
    shared = EvalInputs("encoder", plain.dataset, plain._load, plain._cache, {("train", 1)})
    run, extracted = extraction.run_extractor, []

    def count(*arguments):
        extracted.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(extraction, "run_extractor", count)
    found = shared.features("train")
    assert shared.features("train", dense=True) is found and len(extracted) == 1
    assert set(found.arrays) == {"tokens", "frames"}
    assert set(shared.features("val").arrays) == {"frames"}
    np.testing.assert_allclose(plain.features("train").pooled("mean"), found.pooled("mean"))
    plain._cache.max_gb = 1e-6  # the tokens of 6 videos have 1.5 kB
    small = EvalInputs("small", plain.dataset, plain._load, plain._cache, {("train", 1)})
    assert set(small.features("train").arrays) == {"frames"}


def test_states_of_heads_depend_on_the_stored_dtype(tmp_path):
    encoder, keys = make_blind(size=16, frames=2), []
    for dtype in ("float32", "float16", "float32"):
        config = probe_config.get_config("tiny")
        config.features.dtype = dtype
        config = resolve(config, encoder, "simple?videos=6&size=16&frames=2")
        keys.append(make_inputs(config, encoder, tmp_path).state_file("head").key)
    assert keys[0] == keys[2] != keys[1]


def test_evaluators_name_the_tokens_that_they_read():
    config = probe_config.get_config("tiny")
    config.text = zero_shot.get_config("tiny").text
    config.attentive_probe.crops = 3
    config.text.pooling = "attention"
    evaluators = registry.find_evaluators(("linear_probe", "attentive_probe", "text_alignment"))
    assert registry.dense_features(evaluators[:1], config) == set()
    assert registry.dense_features(evaluators[1:2], config) == {("train", 1), ("val", 3)}
    assert registry.dense_features(evaluators[2:], config) == {("train", 1), ("val", 1)}
    config.attentive_probe.augment = config.text.augment = True
    assert registry.dense_features(evaluators, config) == set()
