"""The metrics eval/* in metrics.jsonl: their values are compared only for the same videos."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PREFIX = "eval/"
# A metric of runs that evaluate other videos than before: the step after which they do.
SINCE_STEP = "eval/since_step"


def find_changes(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Returns the steps, ascending, after which a run evaluated other videos than before.

    Args:
      records: the records of metrics.jsonl.
    """
    steps = {record.get(SINCE_STEP) for record in records} - {None}
    return sorted(map(int, steps))


def describe_change(records: Sequence[Mapping[str, Any]]) -> str:
    """Describes how the metrics of a run changed from its first to its last evaluation.

    Args:
      records: the records of metrics.jsonl, oldest first. Those of other videos than the last ones
          are left out.

    Returns:
      A line for each metric; "" if there are no two evaluations.
    """
    since = max(find_changes(records), default=0)
    lines, records = [], [record for record in records if record["step"] > since]
    names = {name for record in records for name in record if name.startswith(PREFIX)}
    names -= {SINCE_STEP}
    for name in sorted(names, key=lambda name: (name.endswith("rank"), name)):
        found = [record for record in records if record.get(name) is not None]
        if len(found) > 1:
            first, last = found[0], found[-1]
            start = "before step 1" if first["step"] == 1 else f"after step {first['step']}"
            lines.append(
                f"{name}: {first[name]:.4g} {start}, {last[name]:.4g} after step {last['step']}"
            )
    return "\n".join(lines)
