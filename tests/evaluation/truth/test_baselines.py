"""Baselines have the expected values, also on the ground truth of the synthetic world."""

import math

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor

from invnext_jax.evaluation.metrics import boxes as box_metrics
from invnext_jax.evaluation.metrics import classification, points, retrieval, segmentation
from invnext_jax.evaluation.metrics import depth as depth_metrics
from invnext_jax.evaluation.truth import baselines
from invnext_jax.synthetic_world import tracks
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec


@pytest.fixture(scope="module")
def clips():
    spec = WorldSpec("full", size=32)
    return [render_clip(spec, index) for index in range(40)]


def test_majority_equals_the_dummy_classifier():
    rng = np.random.default_rng(0)
    train, val = rng.integers(0, 4, 50) ** 2, rng.integers(0, 4, 30) ** 2
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((50, 1)), train)
    expected = dummy.score(np.zeros((30, 1)), val)
    assert baselines.majority_accuracy(train, val) == pytest.approx(expected)


def test_random_scores_reach_the_chance_recall():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 20, 4000)
    found = classification.class_mean_recall(rng.normal(size=(4000, 64)), labels, k=5)
    chance = baselines.chance_recall(labels, 5)
    assert chance == 0.25
    assert abs(found.value - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000)
    assert baselines.chance_recall(np.arange(3), 5) == 1


def test_prior_scores_are_the_frequencies_of_the_training_classes():
    scores = baselines.prior_scores(np.array([0, 0, 2, -1, 9]), classes=4, videos=2)
    np.testing.assert_allclose(scores, [[2 / 3, 0, 1 / 3, 0]] * 2)


def test_mean_depth_equals_the_dummy_regressor(clips):
    limits = depth_metrics.WORLD
    truth = [clip.depth.astype(np.float64) for clip in clips]
    truth[0][:, :4, :4] = 0  # unknown
    mean = baselines.MeanDepth.of_clips(truth, limits)
    known = np.concatenate([depth[depth > 0] for depth in truth])
    dummy = DummyRegressor().fit(np.zeros((len(known), 1)), known)
    assert mean.constant == pytest.approx(float(dummy.constant_.item()))
    image = mean.predict_mean_image(8)
    stacked = np.ma.masked_equal(np.concatenate(truth), 0).mean(axis=0)
    np.testing.assert_allclose(image[0], stacked.filled(), rtol=1e-9)
    # The mean image is the better baseline, and the ground truth is better than both.
    scores = [
        np.mean([depth_metrics.score_depth(p, depth, limits).abs_rel for depth in truth])
        for p in (mean.predict_constant(truth[0].shape), image)
    ]
    assert 0.05 < scores[1] < scores[0] < 0.6


def test_pixels_that_were_never_known_have_the_constant():
    depth = np.array([[[2.0, 0.0]], [[4.0, 0.0]]])
    mean = baselines.MeanDepth.of_clips([depth], depth_metrics.WORLD)
    np.testing.assert_allclose(mean.predict_mean_image(1), [[[3, 3]]])


def test_static_predictions_are_between_chance_and_truth(clips):
    ious, jaccards, regions = [], [], []
    for index, clip in enumerate(clips):
        present = clip.visible > 0
        ious.append(
            box_metrics.score_tracks(baselines.static_boxes(clip.boxes), clip.boxes, present)
        )
        found = tracks.sample_points(WorldSpec("full", size=32), index, clip.ids, 8)
        query = np.zeros(8, int)
        position = points.to_raster(found.points_nt2)
        static = baselines.static_points(position, query)
        shown = np.zeros_like(found.occluded_nt)
        scores = points.score_points(static, shown, position, found.occluded_nt, query)
        jaccards.append(scores.average_jaccard)
        truth = points.score_points(position, found.occluded_nt, position, found.occluded_nt, query)
        assert truth.average_jaccard == 1 or np.isnan(truth.average_jaccard)
        regions.append(segmentation.score_masks(baselines.static_masks(clip.ids), clip.ids, [1]))
    mean_iou = np.nanmean([score.mean_iou for score in ious])
    assert 0.1 < mean_iou < 0.6
    assert np.nanmean(jaccards) < 0.5
    assert 0.02 < np.mean([score.region for score in regions]) < 0.7


def test_random_rankings_reach_the_chance_of_retrieval():
    rng = np.random.default_rng(2)
    found = retrieval.score_retrieval(rng.normal(size=(2000, 40)), rng.integers(0, 40, 2000))
    for k in retrieval.CUTOFFS:
        chance = retrieval.chance_of_recall(np.eye(40, dtype=bool), k)
        got = found["text_to_video"].recall[k]
        assert abs(got - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)
    assert retrieval.chance_of_recall(np.eye(3, dtype=bool), 5) == 1
    assert baselines.chance_choice(np.array([2, 4])) == pytest.approx(0.375)
