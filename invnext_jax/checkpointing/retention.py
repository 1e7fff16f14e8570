"""Selects which checkpoints to keep: the latest, those of every Nth step, and the best ones."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from orbax.checkpoint import checkpoint_managers

from invnext_jax.checkpointing import storage
from invnext_jax.errors import UserError


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks `config.checkpoint`.

    Raises:
      UserError: a value is out of range or unknown.
    """
    least = {"every_steps": 1, "keep_last": 1}
    least |= {"every_minutes": 0, "keep_every_steps": 0, "keep_best": 0}
    for name, bound in least.items():
        if config[name] < bound:
            raise UserError(f"config.checkpoint.{name}={config[name]} must be at least {bound}")
    if config.keep_every_steps % config.every_steps:
        raise UserError(
            f"config.checkpoint.keep_every_steps={config.keep_every_steps} must be a multiple of "
            f"config.checkpoint.every_steps={config.every_steps}, the steps that are saved"
        )
    if (mode := config.best_mode) not in ("min", "max"):
        raise UserError(f"config.checkpoint.best_mode={mode!r} must be 'min' or 'max'")
    if config.keep_best and not config.best_metric:
        raise UserError("config.checkpoint.keep_best needs config.checkpoint.best_metric: set it")


def unused_options(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the options of `config.checkpoint` that have no effect, with the reason."""
    if config.keep_best:
        return {}
    reason = "config.checkpoint.keep_best is 0: set it to the number of checkpoints to keep"
    return {"checkpoint.best_metric": reason, "checkpoint.best_mode": reason}


def make_policy(
    config: ml_collections.ConfigDict,
    latest: "LatestApplied",
    best: "BestScores",
    undeletable: "Undeletable",
) -> checkpoint_managers.PreservationPolicy:
    """Returns the policy that keeps a checkpoint if any rule keeps it.

    Args:
      config: `config.checkpoint`.
      latest: the rule that keeps the last checkpoints.
      best: the rule that keeps the checkpoints with the best scores.
      undeletable: the rule that keeps the checkpoints that cannot be removed.
    """
    policies = [checkpoint_managers.LatestN(1), latest, best, undeletable]
    if config.keep_every_steps:
        policies.append(checkpoint_managers.EveryNSteps(config.keep_every_steps))
    return checkpoint_managers.AnyPreservationPolicy(policies)


class LatestApplied(checkpoint_managers.PreservationPolicy):
    """Keeps the last checkpoints whose step applied its update.

    Those of skipped steps do not count, so that a run with non-finite losses keeps its checkpoints
    from before the first skipped step.

    Args:
      keep_last: number of checkpoints to keep.
      saved: metadata of the checkpoints from earlier starts of the run, see `read_metadata`.
    """

    def __init__(self, keep_last: int, saved: Mapping[int, Mapping[str, Any]]):
        self._keep_last = keep_last
        self._skipped = {step for step, meta in saved.items() if is_skipped(meta)}

    def add(self, step: int, skipped_in_row: int) -> None:
        """Adds a checkpoint that is about to be saved."""
        self._skipped.discard(step)
        if skipped_in_row:
            self._skipped.add(step)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each checkpoint, whether it is one of the last ones."""
        del context
        steps = [info.step for info in checkpoints]
        kept = sorted(set(steps) - self._skipped)[-self._keep_last :]
        return [step in kept for step in steps]


class BestScores(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints with the best scores, using Orbax's `BestN`.

    Orbax reads the metrics of earlier checkpoints from a separate item. Checkpoint format 2 stores
    the score and the name of its metric in the item `meta` instead, so this class reads the scores.
    `BestN` keeps all checkpoints while there are at most n, even those without a score, so only
    checkpoints with a score are passed to it. Among equal scores, the earliest step is the best.
    Scores of `config.eval` on different videos are not compared: the best checkpoints of each
    evaluation are kept.

    Args:
      config: `config.checkpoint`.
      saved: metadata of the checkpoints from earlier starts of the run, see `read_metadata`.
    """

    def __init__(self, config: ml_collections.ConfigDict, saved: Mapping[int, dict[str, Any]]):
        self._metric, self._sign = config.best_metric, -1 if config.best_mode == "min" else 1
        self._scores: dict[int, float | None] = {}
        self._starts: dict[int, int] = {}  # step after which the evaluated videos are used
        for step, meta in saved.items():
            self._add_saved(step, meta)
        self._best = checkpoint_managers.BestN(
            get_metric_fn=lambda score: (self._sign * score["value"], -score["step"]),
            n=config.keep_best,
        )

    def find_best(self) -> tuple[int, float] | None:
        """Returns the step and the score of the best checkpoint; None if none has a score.

        Checkpoints whose scores cannot be compared with that of the newest one are left out.
        """
        newest = self._starts[max(self._scores)] if self._scores else 0
        comparable = [step for step, start in self._starts.items() if start == newest]
        scored = [(s, self._scores[s]) for s in comparable if self._scores[s] is not None]
        return max(scored, key=lambda pair: (self._sign * pair[1], -pair[0]), default=None)

    def add(self, step: int, score: float | None, meta: Mapping[str, Any]) -> None:
        """Adds a checkpoint that is about to be saved.

        Args:
          step: the step of the checkpoint.
          score: its score, or None if it has no score.
          meta: its metadata, see `run_metadata.describe_run`.
        """
        self._scores[step] = score
        is_evaluation = self._metric.startswith("eval/")
        self._starts[step] = meta["evaluation"].get("since_step", 0) if is_evaluation else 0

    def _add_saved(self, step: int, meta: dict[str, Any]) -> None:
        try:
            self.add(step, _find_score(meta, self._metric), {"evaluation": {}, **meta})
        except (TypeError, AttributeError):  # corrupt
            self._scores[step], self._starts[step] = None, 0

    def to_json(self, step: int) -> dict[str, Any]:
        """Returns the JSON-compatible form of the score that is saved with the checkpoint."""
        return {"metric": self._metric, "value": self._scores[step]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each checkpoint, whether it is one of the best."""
        steps = [info.step for info in checkpoints]
        comparable = collections.defaultdict(list)
        for step in steps:
            if (score := self._scores.get(step)) is not None:
                scored = _ScoredCheckpoint(step, {"step": step, "value": score})
                comparable[self._starts[step]].append(scored)
        best = set()
        for scored in comparable.values():
            kept = self._best.should_preserve(scored, context=context)
            best |= {info.step for info, keep in zip(scored, kept, strict=True) if keep}
        return [step in best for step in steps]


class Undeletable(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints that could not be removed, so that Orbax removes the others.

    Orbax stops removing checkpoints at the first error.
    """

    def __init__(self, folder: storage.Path):
        self._folder, self._steps = str(folder), set()

    def add(self, error: Exception) -> None:
        """Adds the checkpoint that a removal error refers to, if there is one."""
        path = getattr(error, "filename", None)
        name = str(path or "").removeprefix(self._folder).lstrip("/").partition("/")[0]
        if name.isdigit():
            self._steps.add(int(name))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each checkpoint, whether it could not be removed."""
        del context
        return [info.step in self._steps for info in checkpoints]


class _ScoredCheckpoint(NamedTuple):
    """The fields of a checkpoint that `BestN` reads."""

    step: int
    metrics: dict[str, Any]


def find_newest_applied(folder: storage.Path, steps: Iterable[int]) -> int | None:
    """Returns the newest of these checkpoints whose step applied its update; None if none did."""
    saved = read_metadata(folder, steps)
    return max((step for step, meta in saved.items() if not is_skipped(meta)), default=None)


def is_skipped(meta: Mapping[str, Any]) -> bool:
    """Returns whether the step of a checkpoint was skipped, given the checkpoint's metadata."""
    return bool(meta.get("skipped_in_row") or meta.get("aborted"))


def read_metadata(folder: storage.Path, steps: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Returns the metadata of finished checkpoints by step.

    Args:
      folder: the checkpoint folder.
      steps: steps of finished checkpoints.

    Returns:
      A dict from steps to metadata, which is {} if it is corrupt (`restore` reports it).
    """
    return {step: _read_meta(folder / str(step)) for step in steps}


def _read_meta(path: storage.Path) -> dict[str, Any]:
    try:
        meta = storage.read_json(path / "meta" / "metadata")
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _find_score(meta: Mapping[str, Any], metric: str) -> float | None:
    """Returns the score in a checkpoint's metadata, or None if it has none for this metric."""
    try:
        saved = meta["score"]
        score = float(saved["value"]) if saved["metric"] == metric else math.nan
    except (ValueError, KeyError, TypeError):  # corrupt
        return None
    return score if math.isfinite(score) else None
