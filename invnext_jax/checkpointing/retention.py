"""Selects the checkpoints to keep: the last ones, every Nth step, and the best by a metric."""

import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections
from orbax.checkpoint import checkpoint_managers


def make_policy(
    config: ml_collections.ConfigDict, best: "BestScores"
) -> checkpoint_managers.PreservationPolicy:
    """Returns the policy that keeps a checkpoint if any of the three rules keeps it.

    Args:
        config: `config.checkpoint`.
        best: the rule that keeps the checkpoints with the best scores.
    """
    policies = [checkpoint_managers.LatestN(config.keep_last), best]
    if config.keep_every_steps:
        policies.append(checkpoint_managers.EveryNSteps(config.keep_every_steps))
    return checkpoint_managers.AnyPreservationPolicy(policies)


class BestScores(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints with the best scores, using Orbax's `BestN`.

    Orbax reads the metrics of earlier checkpoints from its own item. Format 2 stores the score and
    the name of its metric in the item `meta` instead, so this class reads the scores. `BestN` keeps
    all checkpoints while there are at most n, even those without a score, so it is passed only
    checkpoints with a score. Among equal scores, the earliest step is the best.

    Args:
        config: `config.checkpoint`.
        folder: the checkpoint folder.
        steps: steps of the finished checkpoints in the folder, from earlier starts of the run.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, folder: pathlib.Path, steps: Iterable[int]
    ):
        self._metric, self._sign = config.best_metric, -1 if config.best_mode == "min" else 1
        self._scores = {step: _read_score(folder / str(step), config.best_metric) for step in steps}
        self._best = checkpoint_managers.BestN(
            get_metric_fn=lambda score: (self._sign * score["value"], -score["step"]),
            n=config.keep_best,
        )

    def add(self, step: int, score: float | None) -> None:
        """Adds the score (None if there is none) of a checkpoint that is about to be saved."""
        self._scores[step] = score

    def to_json(self, step: int) -> dict[str, Any]:
        """Returns the score in the JSON form that is saved with the checkpoint."""
        return {"metric": self._metric, "value": self._scores[step]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns a list that says for each checkpoint whether it is one of the best."""
        steps = [info.step for info in checkpoints]
        scored = [
            _ScoredCheckpoint(step, {"step": step, "value": self._scores[step]})
            for step in steps
            if self._scores.get(step) is not None
        ]
        kept = self._best.should_preserve(scored, context=context)
        best = {info.step for info, keep in zip(scored, kept, strict=True) if keep}
        return [step in best for step in steps]


class _ScoredCheckpoint(NamedTuple):
    """The fields of a checkpoint that `BestN` reads."""

    step: int
    metrics: dict[str, Any]


def _read_score(path: pathlib.Path, metric: str) -> float | None:
    """Returns the score of a finished checkpoint, or None if it has no score of this metric."""
    try:
        saved = json.loads((path / "meta" / "metadata").read_text())["score"]
        score = float(saved["value"]) if saved["metric"] == metric else math.nan
    except (OSError, ValueError, KeyError, TypeError):  # a corrupt checkpoint; `restore` reports it
        return None
    return score if math.isfinite(score) else None
