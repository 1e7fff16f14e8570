"""Which checkpoints of a run are kept: the last, every Nth step, and the best by a metric."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from orbax.checkpoint import checkpoint_managers


class RetentionPolicy(checkpoint_managers.PreservationPolicy):
    """Keeps the last ones, every Nth step, and the best: none of the three deletes another's."""

    def __init__(self, config: ml_collections.ConfigDict, folder: pathlib.Path):
        self._config = config
        finished = [path for path in folder.glob("[0-9]*") if path.name.isdigit()]
        self._scores = {int(path.name): _read_score(path, config) for path in finished}

    def note(self, step: int, score: float | None) -> None:
        """Notes the score of a step that is about to be saved."""
        self._scores[step] = score

    def config_to_json(self, step: int) -> dict[str, Any]:
        """What stands in the checkpoint of its score."""
        return {"metric": self._config.best_metric, "value": self._scores[step]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each, oldest first."""
        del context
        every, config = self._config.keep_every_steps, self._config
        steps = [info.step for info in checkpoints]
        sign = -1 if config.best_mode == "max" else 1
        scored = [step for step in steps if self._scores.get(step) is not None]
        ranked = sorted(scored, key=lambda step: (sign * self._scores[step], step))
        kept = {*steps[-config.keep_last :], *ranked[: config.keep_best]}
        return [step in kept or (every > 0 and step % every == 0) for step in steps]


def _read_score(path: pathlib.Path, config: ml_collections.ConfigDict) -> float | None:
    """The score of a finished checkpoint, if it is of the same metric."""
    try:
        found = json.loads((path / "meta" / "metadata").read_text())["score"]
        score = float(found["value"]) if found["metric"] == config.best_metric else math.nan
    except (OSError, ValueError, KeyError, TypeError):  # damage, which restoring tells of
        return None
    return score if math.isfinite(score) else None
