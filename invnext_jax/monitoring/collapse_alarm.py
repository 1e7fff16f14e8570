"""Warns of features that collapse during a run."""

from collections.abc import Iterable, Mapping
from typing import Any

_COLLAPSING = ("_std", "_rank")  # suffixes of logged spreads and effective ranks of features


class CollapseAlarm:
    """Compares the spread and the effective rank of features with their largest values so far.

    Args:
      ratio: fraction of the largest value below which a value is a collapse. 0: never.
      records: earlier records of metrics.jsonl, oldest first.
    """

    def __init__(self, ratio: float, records: Iterable[Mapping[str, Any]] = ()):
        self._ratio = ratio
        self._largest: dict[str, tuple[float, int]] = {}  # name -> value, step
        self._reported: set[str] = set()
        for record in records:
            self.check(record)

    def check(self, record: Mapping[str, Any]) -> str:
        """Returns a warning for the metrics that have just collapsed, or "".

        A metric is reported again only after it has recovered.

        Args:
          record: a record of metrics.jsonl.
        """
        found = []
        for name, value in record.items():
            if not name.endswith(_COLLAPSING) or value is None:
                continue
            largest, step = self._largest.get(name, (value, record["step"]))
            if value >= largest:
                self._largest[name] = value, record["step"]
            if value >= self._ratio * largest:
                self._reported.discard(name)
            elif name not in self._reported:
                self._reported.add(name)
                found.append(f"{name} fell to {value:.3g} from {largest:.3g} at step {step}")
        if not found:
            return ""
        return (
            f"warning: the features may have collapsed: {', '.join(found)}. Look at the images "
            "and curves of launch/report.py, lower config.optimizer.learning_rate, or start from "
            "an earlier checkpoint"
        )
