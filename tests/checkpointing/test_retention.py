import json
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest

from invnext_jax.checkpointing import retention


def make_config(**fields):
    defaults = {"keep_last": 1, "keep_every_steps": 0, "keep_best": 0}
    defaults |= {"best_metric": "loss", "best_mode": "min"}
    return ml_collections.ConfigDict({**defaults, **fields})


def kept_steps(config, scores, skipped=()):
    """Returns the steps that the policy keeps, given the score of each checkpoint."""
    best = retention.BestScores(config, saved={})
    for step, score in scores.items():
        best.add(step, score, {"evaluation": {}})
    latest = retention.LatestApplied(config.keep_last, saved={})
    for step in skipped:
        latest.add(step, skipped_in_row=1)
    policy = retention.make_policy(config, latest, best, retention.Undeletable("/run"))
    checkpoints = [SimpleNamespace(step=step, metrics=None) for step in scores]
    answers = policy.should_preserve(checkpoints, context=None)
    return [step for step, keep in zip(scores, answers, strict=True) if keep]


SCORES = {1: 0.3, 2: 0.1, 3: None, 4: 0.2, 5: 0.1, 6: 0.9, 7: 0.5}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, [7]),
        ({"keep_last": 3}, [5, 6, 7]),
        ({"keep_last": 99}, [1, 2, 3, 4, 5, 6, 7]),
        ({"keep_every_steps": 3}, [3, 6, 7]),
        ({"keep_best": 1}, [2, 7]),  # the earlier step of two equal scores
        ({"keep_best": 3}, [2, 4, 5, 7]),
        ({"keep_best": 2, "best_mode": "max"}, [6, 7]),
        ({"keep_best": 9}, [1, 2, 4, 5, 6, 7]),  # one without a score is not one of the best
        ({"keep_best": 1, "keep_every_steps": 3, "keep_last": 2}, [2, 3, 6, 7]),
    ],
)
def test_a_checkpoint_is_kept_if_any_rule_keeps_it(fields, kept):
    assert kept_steps(make_config(**fields), SCORES) == kept


def test_policy_agrees_with_its_definition_on_random_scores():
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = np.cumsum(rng.integers(1, 4, 8)).tolist()
        scores = {s: [None, 0.5, 0.25, -1.0][rng.integers(4)] for s in steps}
        last, every, best = rng.integers(1, 4), rng.integers(0, 4), rng.integers(0, 4)
        mode = ["min", "max"][rng.integers(2)]
        sign = -1 if mode == "max" else 1
        scored = [s for s in steps if scores[s] is not None]
        ranked = sorted(scored, key=lambda s: (sign * scores[s], s))
        expected = {*steps[-last:], *ranked[:best], *(s for s in steps if every and s % every == 0)}
        config = make_config(
            keep_last=int(last), keep_every_steps=int(every), keep_best=int(best), best_mode=mode
        )
        assert kept_steps(config, scores) == sorted(expected)


@pytest.mark.parametrize(
    ("keep_last", "skipped", "kept"),
    [
        (2, (7,), [5, 6, 7]),  # the newest is always kept
        (2, (5, 6, 7), [3, 4, 7]),
        (2, (6,), [5, 7]),
        (1, (1, 2, 3, 4, 5, 6, 7), [7]),
    ],
)
def test_checkpoints_of_skipped_steps_do_not_replace_others(keep_last, skipped, kept):
    assert kept_steps(make_config(keep_last=keep_last), SCORES, skipped) == kept


def test_policy_of_no_checkpoints_is_empty():
    assert kept_steps(make_config(keep_best=1, keep_every_steps=2), {}) == []


def test_scores_of_earlier_starts_count_if_they_are_of_the_same_metric(tmp_path):
    saved = {
        1: {"score": {"metric": "loss", "value": 0.1}},
        2: {"score": {"metric": "accuracy", "value": 0.0}},
        3: {"score": {"metric": "loss", "value": None}},
        4: {},
    }
    for step, meta in saved.items():
        (tmp_path / str(step) / "meta").mkdir(parents=True)
        (tmp_path / str(step) / "meta/metadata").write_text(json.dumps(meta))
    found = retention.read_metadata(tmp_path, [*saved, 5])
    best = retention.BestScores(make_config(keep_best=2), found)
    best.add(6, 0.2, {"evaluation": {}})
    checkpoints = [SimpleNamespace(step=step) for step in (1, 2, 3, 4, 5, 6)]
    assert best.should_preserve(checkpoints, context=None) == [True, *[False] * 4, True]
    assert best.to_json(6) == {"metric": "loss", "value": 0.2}


@pytest.mark.parametrize(
    ("metric", "kept", "best"), [("eval/knn_x", [1, 4], (4, 0.5)), ("loss", [1], (1, 0.9))]
)
def test_scores_on_other_evaluated_videos_are_ranked_separately(metric, kept, best, tmp_path):
    config = make_config(keep_best=1, best_metric=metric, best_mode="max")
    values = {1: (0, 0.9), 2: (0, 0.8), 3: (2, 0.4), 4: (2, 0.5), 5: (2, 0.3)}
    for step, (since, value) in list(values.items())[:3]:
        score = {"metric": metric, "value": value}
        (tmp_path / str(step) / "meta").mkdir(parents=True)
        meta = {"score": score, "evaluation": {"since_step": since}}
        (tmp_path / str(step) / "meta/metadata").write_text(json.dumps(meta))
    scores = retention.BestScores(config, retention.read_metadata(tmp_path, (1, 2, 3)))
    for step in (4, 5):
        scores.add(step, values[step][1], {"evaluation": {"since_step": 2}})
    answers = scores.should_preserve([SimpleNamespace(step=s) for s in values], context=None)
    assert [s for s, keep in zip(values, answers, strict=True) if keep] == kept
    assert scores.find_best() == best


def test_checkpoint_that_cannot_be_removed_is_kept():
    undeletable = retention.Undeletable("/run")
    undeletable.add(PermissionError(13, "Permission denied", "/run/2/state/d"))
    undeletable.add(ValueError("without a file"))
    checkpoints = [SimpleNamespace(step=step) for step in (1, 2, 3)]
    assert undeletable.should_preserve(checkpoints, context=None) == [False, True, False]
