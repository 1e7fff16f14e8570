"""Text alignment: oracle and blind encoders, files of captions, devices, resuming, bad inputs."""

import json
import types

import jax
import ml_collections
import numpy as np
import oracle_encoder
import pytest

from configs.eval.tasks import zero_shot as zero_shot_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data, inputs
from invnext_jax.evaluation.evaluators.text_alignment import TextAlignment
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.evaluation.text import alignment_training, caption_data
from invnext_jax.evaluation.truth.captions import Captions

TRAIN, VAL = "world:simple/train?videos=320", "world:simple/val?videos=80"
TASKS = ("shape", "color", "motion")


@pytest.fixture(autouse=True)
def set_devices(monkeypatch):
    """Uses one device, which is faster. Returns a function that sets another number."""
    devices = jax.local_devices()

    def set_count(count):
        monkeypatch.setattr(jax, "local_devices", lambda: devices[:count])

    set_count(1)
    return set_count


@pytest.fixture
def config():
    config = zero_shot_config.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=VAL, tasks=TASKS)
    config.data.update(manifest=TRAIN, frames=8, size=32, short_side=32, workers=0)
    config.text.update(batch_size=64, epochs=40.0, pooling="mean", learning_rate=1e-2)
    return config


def make_inputs(config, encoder, folder):
    config = ml_collections.FrozenConfigDict(config)
    dataset = evaluation_data.EvaluationData(config, config.tasks)
    return inputs.EvalInputs("encoder", dataset, lambda: encoder, FeatureCache(folder / "features"))


def evaluate(config, encoder, folder):
    TextAlignment().check_config(config)
    rows = TextAlignment().evaluate(make_inputs(config, encoder, folder), config)
    return {(row.task, row.metric): row for row in rows}


@pytest.fixture(scope="module")
def oracle():
    """Returns an encoder whose tokens are the one-hot labels of the clip plus noise."""
    config = zero_shot_config.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=VAL)
    config.data.update(manifest=TRAIN, frames=8, size=32, short_side=32, workers=0)
    dataset = evaluation_data.EvaluationData(ml_collections.FrozenConfigDict(config), TASKS)
    parts = [dataset.videos(split) for split in evaluation_data.SPLITS]
    video = np.concatenate([part.video_bthwc for part in parts])
    labels = [np.concatenate([part.labels[task] for part in parts]) for task in TASKS]
    truth = np.concatenate([np.eye(8)[y] for y in labels], axis=1)
    truth = np.repeat(truth[:, None], 8, axis=1)
    truth += np.random.default_rng(0).normal(0, 0.05, truth.shape)
    return oracle_encoder.make_oracle(video, truth)


def test_oracle_reaches_the_best_scores(config, oracle, tmp_path):
    rows = evaluate(config, oracle, tmp_path)
    for task in (*TASKS, "motion choices"):
        row = rows[task, "top1"]
        assert row.value >= 0.95 and row.n == 80, row
        assert row.details["classes"] == {"color": 6}.get(task, 8)
    digest = caption_data.hash_files(config)
    assert {row.details["texts_digest"] for row in rows.values()} == {digest}
    for way in ("text to video", "video to text"):
        assert rows[way, "recall_at_1"].value >= 0.95
        assert rows[way, "recall_at_1"].value <= rows[way, "recall_at_5"].value
        assert rows[way, "median_rank"].value == 1
        scores = rows[way, "recall_at_1"].scores
        mean = np.average(scores.score_b, weights=scores.weight_b)
        np.testing.assert_allclose(mean, rows[way, "recall_at_1"].value)


def test_blind_encoder_scores_chance(config, tmp_path):
    config.text.epochs = 4.0
    rows = evaluate(config, oracle_encoder.make_blind(width=24), tmp_path)
    for task in (*TASKS, "motion choices"):
        chance = 1 / rows[task, "top1"].details["classes"]
        assert rows[task, "top1"].value < chance + 4 * np.sqrt(chance / 80)
    # All videos have the same score, and ties count against the model.
    assert rows["text to video", "recall_at_10"].value == 0
    assert rows["text to video", "recall_at_1"].details["chance"] < 0.03
    chance = rows["video to text", "recall_at_10"].details["chance"]
    assert rows["video to text", "recall_at_10"].value < chance + 4 * np.sqrt(chance / 80)


@pytest.mark.parametrize(("augment", "loss"), [(True, "info_nce"), (False, "sigmoid")])
def test_attention_pool_is_trained_on_cached_tokens_and_in_the_step(
    augment, loss, config, tmp_path
):
    train, val = "world:simple/train?videos=32", "world:simple/val?videos=16"
    config.update(train_manifest=train, val_manifest=val, tasks=("shape", "motion"))
    config.data.update(manifest=train, crop="multi_scale", crop_scales=(1.0,))
    config.text.update(pooling="attention", pool_width=8, pool_heads=2, batch_size=16)
    config.text.update(epochs=2.0, warmup_epochs=0.5, augment=augment, loss=loss)
    rows = evaluate(config, oracle_encoder.make_blind(width=8), tmp_path)
    row = rows["motion choices", "top1"]
    assert row.n == 16 and np.isfinite(row.details["train_loss"])
    assert (tmp_path / "features").exists() != augment


def test_rows_do_not_depend_on_the_devices_and_a_second_run_reads_its_state(
    config, oracle, tmp_path, set_devices
):
    config.text.epochs = 3.0
    set_devices(8)
    many = evaluate(config, oracle, tmp_path / "a")
    again = evaluate(config, oracle, tmp_path / "a")
    set_devices(1)
    one = evaluate(config, oracle, tmp_path / "b")
    for key, row in many.items():
        assert row.to_json() == again[key].to_json()
        assert row.value == one[key].value
        losses = [other.details["train_loss"] for other in (row, one[key])]
        np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("augment", [False, True])
def test_alignment_of_another_evaluation_is_used(augment, config, oracle, tmp_path):
    config.text.update(epochs=2.0, warmup_epochs=0.0, augment=augment)
    config.data.update(crop="multi_scale", crop_scales=(1.0,))  # the oracle knows whole clips
    config.train_manifest = config.data.manifest = TRAIN.replace("320", "64")
    first = evaluate(config, oracle, tmp_path / "a")
    config.text.update(alignment=str(tmp_path / "a"), templates=("a video of {}",))
    config.val_manifest = VAL.replace("80", "40")
    other = evaluate(config, oracle, tmp_path / "b")
    config.val_manifest = VAL
    again = evaluate(config, oracle, tmp_path / "c")
    assert not (tmp_path / "c" / "heads").exists()
    for key, row in first.items():
        assert again[key].to_json() == row.to_json()
        assert other[key].n == 40 and row.n == 80
        assert other[key].details["train_loss"] == row.details["train_loss"]
    for changes in ({"learning_rate": 0.1}, {"epochs": 3.0}, {"alignment": str(tmp_path / "x")}):
        changed = config.copy_and_resolve_references()
        changed.text.update(changes)
        with pytest.raises(UserError, match="has no finished alignment with this encoder"):
            evaluate(changed, oracle, tmp_path / "d")


def test_captions_of_other_videos_need_another_alignment(config):
    pairs = [
        Captions(["a dog", "a cat"], np.array(row_j), np.arange(2), 0)
        for row_j in ([0, 1], [0, 1], [1, 0])
    ]
    text = types.SimpleNamespace(key="tower")
    first, same, swapped = (alignment_training.make_key(config, p, text) for p in pairs)
    assert first == same != swapped


def test_pooling_that_the_encoder_lacks_is_skipped(config, oracle, tmp_path, capsys):
    config.text.pooling = "pool"
    assert evaluate(config, oracle, tmp_path) == {}
    assert "config.text.pooling='pool'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "config.text.pooling='max' must be one of"),
        ({"loss": "triplet"}, "config.text.loss='triplet' must be one of"),
        ({"temperature": 0.0}, "config.text.temperature=0.0 must be positive"),
        ({"warmup_epochs": 90.0}, "config.text.warmup_epochs=90.0 must be"),
        ({"weight_decay": -1.0}, "config.text.weight_decay=-1.0 must not be negative"),
        ({"train_text": False}, "config.text.encoder is empty"),
        ({"templates": ("a photo",)}, "config.text.templates has 'a photo'"),
        ({"templates": ("{} {name}",)}, "config.text.templates has"),
        ({"templates": ()}, "config.text.templates is empty"),
    ],
)
def test_invalid_options_are_refused(changes, message, config):
    config.text.update(changes)
    with pytest.raises(UserError, match=message):
        TextAlignment().check_config(config)


def test_nothing_to_measure_and_missing_captions_are_refused(config, oracle, tmp_path, world):
    clips = tmp_path / "videos" / "clips"
    clips.mkdir(parents=True)
    paths = [clips / f"{i}.mp4" for i in range(2)]
    for path in paths:
        path.write_bytes((world.parent / "train" / f"00000{path.name}").read_bytes())
    plain = tmp_path / "videos" / "plain.csv"
    plain.write_text("path,source\n" + "".join(f"clips/{path.name},x\n" for path in paths))
    config.update(train_manifest=str(plain), val_manifest=str(plain), tasks=())
    with pytest.raises(UserError, match="has no captions: set config.text.train_captions"):
        evaluate(config, oracle, tmp_path)
    config.text.train_captions = str(tmp_path / "missing.json")
    with pytest.raises(UserError, match="missing.json cannot be read"):
        evaluate(config, oracle, tmp_path)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps([{"video": paths[0].name, "caption": "a disc"}]))
    config.text.train_captions = str(captions)
    with pytest.raises(UserError, match="neither captions nor class names nor choices"):
        evaluate(config, oracle, tmp_path)
