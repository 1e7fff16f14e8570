"""Encoders that know the truth reach the best scores with the options of configs/eval/world.py.

The classes, k-NN and few-shot are tested in test_world_config.py. Some scores are limited by the
resolution of the tokens instead of the features: labels are propagated by tokens of 4 pixels of the
original frame, and the row `token_truth` is the score of the true labels at this resolution. All
other tasks can reach 1.
"""

import numpy as np
import pytest
from einops import rearrange
from oracle_encoder import add_places, balance, make_blind, make_inputs, make_oracle, read_truth

from configs.eval import world
from invnext_jax.evaluation import evaluation_data
from invnext_jax.evaluation.evaluation_data import EvaluationData
from invnext_jax.evaluation.evaluators import registry

pytestmark = pytest.mark.slow
PATCH = 8


def get_config(train, val, patch=PATCH, level="simple", **sections):
    config = world.get_config()
    for section, changes in sections.items():
        config[section].update(changes)
    config.train_manifest = f"world:{level}/train?videos={train}"
    config.val_manifest = f"world:{level}/val?videos={val}"
    config.anticipation.update(train_manifest="", val_manifest="")
    config.data.update(root="", workers=0)
    return evaluation_data.resolve(config, make_blind(patch=patch))


def measure(name, config, encoder, folder, tasks=()):
    (evaluator,) = registry.find_evaluators([name])
    rows = evaluator.evaluate(make_inputs(config, encoder, folder, tasks=tasks), config)
    rows = [row for row in rows if "best on val" not in row.input]
    if tasks:
        return {(row.task, row.metric): row for row in rows}
    return {(row.name, row.metric): row for row in rows}


def make_label_oracle(config, tasks, frames):
    """Makes an encoder whose tokens are the one-hot labels and a little noise."""
    dataset = EvaluationData(config, tasks)
    parts = [dataset.videos(split) for split in ("train", "val")]
    clips = np.concatenate([part.video_bthwc for part in parts])[:, :frames]
    labels = [np.concatenate([part.labels[task] for part in parts]) for task in tasks]
    code_md = np.concatenate([np.eye(label_m.max() + 1)[label_m] for label_m in labels], axis=1)
    code_mtd = np.repeat(code_md[:, None], frames, axis=1)
    return make_oracle(clips, code_mtd + np.random.default_rng(0).normal(0, 0.02, code_mtd.shape))


def code_depth(truth):
    pattern = "m t (a p) (b q) -> m t (a b) (p q)"
    depth_mtnd = rearrange(truth["depth"], pattern, p=PATCH, q=PATCH)
    return balance(add_places((depth_mtnd - depth_mtnd.mean()) / depth_mtnd.std()))


def code_boxes(truth):
    """Codes of the frames: the box of the object, relative to that of the first frame."""
    boxes_mt4 = truth["boxes"][:, :, 0]
    return balance(4 * (boxes_mt4 - boxes_mt4[:, :1]))


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        ("simple", {}),
        ("full", {}),
        # The head of the paper, with tokens that also contain their position.
        ("simple", {"head": "attention", "epochs": 5.0, "warmup_epochs": 0.5}),
    ],
)
def test_depth(level, changes, tmp_path):
    config = get_config(2000, 200, level=level, depth=changes)
    truth = read_truth(config.depth, config)
    oracle = make_oracle(truth["video"], code_depth(truth))
    found = measure("depth", config, oracle, tmp_path)
    assert found["encoder", "delta1"].value >= 0.95
    assert found["pixel_mean", "delta1"].value < 0.92


def test_tracking(tmp_path):
    config = get_config(2000, 200, tracking={"targets": ("boxes",)})
    truth = read_truth(config.tracking, config)
    oracle = make_oracle(truth["video"], code_boxes(truth))
    found = measure("tracking", config, oracle, tmp_path)
    assert found["encoder", "mean_iou"].value >= 0.95
    static = found["static", "mean_iou"].value
    assert static < 0.25
    blind = measure("tracking", config, make_blind(), tmp_path / "blind")
    assert blind["encoder", "mean_iou"].value < static + 0.1


def test_anticipation(tmp_path):
    tasks = ("verb", "noun", "action")
    config = get_config(2000, 200, level="anticipation")
    oracle = make_label_oracle(config, tasks, config.anticipation.context_frames)
    found = measure("anticipation", config, oracle, tmp_path, tasks)
    assert min(row.value for row in found.values()) >= 0.95
    assert {metric for _, metric in found} == {"class_mean_recall@1", "class_mean_recall@5"}
    blind = measure("anticipation", config, make_blind(), tmp_path / "blind", tasks)
    for (task, _), row in blind.items():
        if task != "action":  # 64 classes are too coarse
            assert row.value == pytest.approx(row.details["chance"], abs=1e-6)


def test_text_alignment(tmp_path):
    tasks = ("shape", "color", "motion")
    config = get_config(2000, 200)
    oracle = make_label_oracle(config, tasks, 8)
    found = measure("text_alignment", config, oracle, tmp_path, tasks)
    for task in (*tasks, "motion choices"):
        assert found[task, "top1"].value >= 0.95
    for way in ("text to video", "video to text"):
        assert found[way, "recall_at_1"].value >= 0.95
    blind = measure("text_alignment", config, make_blind(), tmp_path / "blind", tasks)
    for task in (*tasks, "motion choices"):
        chance = 1 / blind[task, "top1"].details["classes"]
        assert blind[task, "top1"].value < chance + 4 * (chance / 200) ** 0.5
    assert blind["text to video", "recall_at_10"].value == 0  # ties count against the model


def test_label_propagation(tmp_path):
    """The tokens of frames of 64 x 64 pixels are those of an encoder of 4 x 4 pixels here."""
    config = get_config(4, 60, patch=4, label_propagation={"height": 0, "width": 0})
    truth = read_truth(config.label_propagation, config, ("val",))
    pattern = "m t (a p) (b q) -> m t (a b) (p q)"
    share_mtn = rearrange(truth["ids"] > 0, pattern, p=4, q=4).mean(axis=-1)
    angle_mtn = share_mtn * np.pi / 2
    oracle = make_oracle(
        truth["video"], np.stack([np.cos(angle_mtn), np.sin(angle_mtn)], axis=-1), patch=4
    )
    found = measure("label_propagation", config, oracle, tmp_path)
    best = found["token_truth", "j_and_f"].value
    assert found["encoder", "j_and_f"].value >= 0.95 * best
    assert best > 0.65 > found["static", "j_and_f"].value + 0.4
