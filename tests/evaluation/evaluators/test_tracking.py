"""Tracking heads on the synthetic world and on boxes from a JSON lines file."""

import dataclasses

import jax
import numpy as np
import pytest
from oracle_encoder import balance, make_blind, make_inputs, make_truth_oracle, resolve
from truth_layouts import SPEC, write_boxes

from configs.eval.tasks import tracking as tracking_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense.truth_source import open_truth
from invnext_jax.evaluation.evaluators import tracking
from invnext_jax.evaluation.evaluators.tracking import Tracking
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.evaluation.metrics import boxes as box_metrics

PATCH, SIZE, FRAMES = 16, 32, 4
WORLD = f"simple?videos=32&size={SIZE}&frames={FRAMES}"
SETTINGS = {
    **{"width": 64, "heads": 2, "query_width": 32, "batch_size": 32, "epochs": 300.0},
    **{"learning_rates": (1e-2,), "targets": ("boxes",)},
}


def get_config(encoder, settings=None, world=WORLD, **changes):
    config = tracking_config.get_config("tiny")
    config.tracking.update({**SETTINGS, **(settings or {})})
    return resolve(config, encoder, world, **{"batch_size": 32, **changes})


def evaluate(encoder, folder, config, name="encoder"):
    rows = Tracking().evaluate(make_inputs(config, encoder, folder, name), config)
    return {(row.name, row.metric): row for row in rows}


def code_boxes(truth):
    """Makes codes of the frames: the box of the object, relative to that of the first frame."""
    boxes_mt4 = truth["boxes"][:, :, 0]
    return balance(4 * (boxes_mt4 - boxes_mt4[:, :1]))


@pytest.fixture(scope="module")
def blind():
    return make_blind(patch=PATCH, size=SIZE, frames=FRAMES)


def test_static_boxes_and_their_loss_have_the_values_of_the_metric(blind, tmp_path):
    config = get_config(blind, {"epochs": 2.0})
    found = evaluate(blind, tmp_path, config)
    truth = open_truth(config.tracking, "val", config)
    scores = []
    for row in range(len(truth)):
        clip = truth.load(row)
        static = np.repeat(clip["boxes"][:1], FRAMES, axis=0)
        scores.append(box_metrics.score_tracks(static, clip["boxes"], clip["present"]))
    used = [score for score in scores if score.pairs]
    expected = np.average([x.mean_iou for x in used], weights=[x.pairs for x in used])
    row = found["static", "mean_iou"]
    assert row.value == pytest.approx(expected) and row.n == len(used)
    assert (row.task, row.standard_error > 0) == ("world boxes", True)


@pytest.mark.slow
def test_an_oracle_tracks_better_than_a_blind_encoder(blind, tmp_path):
    config = get_config(blind)
    oracle = make_truth_oracle(config.tracking, config, code_boxes, PATCH)
    seeing = evaluate(oracle, tmp_path / "oracle", config)
    found = evaluate(blind, tmp_path / "blind", get_config(blind, {"epochs": 10.0}))
    row, static = seeing["encoder", "mean_iou"], seeing["static", "mean_iou"]
    assert row.value > static.value + 0.2
    assert row.value > found["encoder", "mean_iou"].value + 0.2


def test_scores_depend_neither_on_the_batch_size_nor_on_devices(blind, tmp_path, monkeypatch):
    settings = {"epochs": 2.0, "targets": ("boxes", "points")}
    expected = evaluate(blind, tmp_path, get_config(blind, settings))
    assert {"mean_iou", "average_jaccard", "occlusion_accuracy"} <= {x for _, x in expected}
    # The saved heads are used: training would need more batches.
    monkeypatch.setattr(extraction.jax, "local_devices", lambda: jax.devices()[:1])
    found = evaluate(blind, tmp_path, get_config(blind, settings, batch_size=7))
    for key, row in expected.items():
        np.testing.assert_allclose(found[key].scores.score_b, row.scores.score_b, rtol=1e-5)


def test_perfect_points_reach_all_metrics_of_tap_vid():
    rng = np.random.default_rng(0)
    points_kt2, occluded_kt = rng.random((5, 4, 2)), rng.random((5, 4)) < 0.3
    occluded_kt[:, 0] = False
    arrays = {"points": points_kt2, "occluded": occluded_kt}
    logits_kt1 = np.where(occluded_kt, 3.0, -3.0)[..., None]
    perfect_kt3 = np.concatenate([points_kt2, logits_kt1], axis=-1)
    assert tracking.score_points(perfect_kt3, arrays) == ([1.0, 1.0, 1.0], 1)
    assert tracking.score_points(None, arrays)[0][0] < 0.5


def test_boxes_in_the_neutral_format_are_evaluated(tmp_path):
    spec = dataclasses.replace(SPEC, frames=8)
    for split in ("train", "val"):
        write_boxes(tmp_path / "boxes" / split, spec=spec, as_folder=True)
    settings = {"data": "boxes", "root": str(tmp_path / "boxes"), "fps": 0.0, "epochs": 2.0}
    encoder = make_blind(patch=PATCH, size=32, frames=FRAMES)
    config = get_config(encoder, settings, world="")
    Tracking().check_config(config)
    found = evaluate(encoder, tmp_path / "out", config)
    row = found["encoder", "mean_iou"]
    assert row.task == "boxes" and 1 <= row.n <= 2 and 0 <= row.value <= 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": "waymo"}, "data='waymo' must be one of"),
        ({"data": "boxes"}, "config.tracking.root is empty"),
        ({"targets": ()}, "targets=.* must have one or more"),
        ({"data": "boxes", "root": "a"}, "only the synthetic world has"),
        ({"width": 8}, "width=8 must be divisible by 16 with append_positions=True"),
        ({"fps": -1.0}, "fps=-1.0 must not be negative"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
    ],
)
def test_invalid_options_are_refused(changes, text):
    config = tracking_config.get_config("tiny")
    config.tracking.update(changes)
    with pytest.raises(UserError, match=text):
        Tracking().check_config(config)
