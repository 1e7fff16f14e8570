"""How the values of metrics are displayed: titles, units and digits."""

from typing import NamedTuple


class MetricFormat(NamedTuple):
    """How to format the values of a metric.

    Attributes:
      title: name of the metric with its unit.
      scale: factor that converts values to that unit.
      digits: number of digits after the decimal point; None for three significant digits.
      is_share: whether values are fractions in [0, 1], which are also shown as bars.
      higher_is_better: False for errors.
    """

    title: str
    scale: float = 1.0
    digits: int | None = None
    is_share: bool = False
    higher_is_better: bool = True

    def write(self, value: float) -> str:
        """Returns the value as text."""
        value = self.scale * value
        text = f"{value:.3g}" if self.digits is None else f"{value:.{self.digits}f}"
        # A small negative number is rounded to zero, which has no sign.
        return text[1:] if text.startswith("-") and not text.strip("-0.") else text

    def write_difference(self, value: float) -> str:
        """Returns a difference as text; positive numbers have a sign."""
        text = self.write(value)
        return "+" * (value > 0 and text.strip("0.") != "") + text


_PERCENT = {
    "top1": "top-1",
    "j_and_f": "J&F",
    "region_j": "J (region)",
    "boundary_f": "F (boundary)",
    "pck_0.1": "PCK@0.1",
    "pck_0.2": "PCK@0.2",
    "position_accuracy": "position accuracy",
    **{f"recall_at_{k}": f"R@{k}" for k in (1, 5, 10)},
    "mean_iou": "mean IoU",
    "average_jaccard": "average Jaccard",
    "occlusion_accuracy": "occlusion accuracy",
    "delta1": "depth delta1",
    "aligned_delta1": "depth delta1, aligned",
}
_ERRORS = {"abs_rel": "depth AbsRel", "aligned_abs_rel": "depth AbsRel, aligned"}
METRICS = {
    **{name: MetricFormat(f"{title}, %", 100.0, 1, True) for name, title in _PERCENT.items()},
    **{name: MetricFormat(title, 1.0, 3, False, False) for name, title in _ERRORS.items()},
    "median_rank": MetricFormat("median rank", 1.0, 1, False, False),
    "prediction_loss": MetricFormat("prediction loss", 1.0, 4, False, False),
    "prediction_gain": MetricFormat("gain of prediction from other frames", 1.0, 4),
}
_RECALL = "class_mean_recall@"  # followed by the number of classes that count as predicted


def find_format(metric: str) -> MetricFormat:
    """Returns the format of a metric; unknown metrics are not scaled."""
    if metric.startswith(_RECALL):
        title = f"class-mean recall@{metric.removeprefix(_RECALL)}, %"
        return MetricFormat(title, 100.0, 1, True)
    return METRICS.get(metric, MetricFormat(metric.replace("_", " ")))
