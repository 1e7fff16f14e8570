"""Small SVG charts of a run's metrics.jsonl for a web page.

This is the only module that imports Matplotlib, which reads the file `matplotlibrc` of the current
folder while it is imported. Commands are often run in the folder of somebody else's run, so the
import takes place in another folder.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax.monitoring import evaluation_metrics


@contextlib.contextmanager
def _in_folder(path: Path) -> Iterator[None]:
    """Changes the current folder. In contrast to `contextlib.chdir`, it may have been deleted."""
    current = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
        yield
    finally:
        os.fchdir(current)
        os.close(current)


with _in_folder(Path(__file__).parent):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

# These colors can be distinguished by color-blind readers.
COLORS = ("#1f5f99", "#c8502d", "#3c8f5a", "#8a5fb0", "#b58900", "#5b6770")
DASHES = ("solid", "dashed", "dotted", "dashdot")  # of the first lines, of the next ones, ...
MAX_LINES = 12  # of a chart
MAX_BREAKS = 20  # of a chart
INK, FAINT = "#3b4450", "#dfe3e8"
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE = {
    "svg.fonttype": "none",  # text stays selectable and uses the font of the page
    "font.size": 9,
    "axes.edgecolor": "#aab2bb",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclasses.dataclass(frozen=True)
class ChartSpec:
    """A chart with a caption that shows all metrics whose full name matches `pattern`."""

    title: str
    pattern: str
    caption: str
    log: bool = False


CHARTS = (
    ChartSpec(
        "Loss", r"loss", "The weighted sum of all loss terms. The optimizer minimizes this sum."
    ),
    ChartSpec(
        "Nearest neighbors during training",
        r"eval/(knn_\w+|retrieval)",
        "Accuracy on the videos of config.eval, leave-one-out: each clip is classified by its "
        "nearest neighbors, or, without labels, retrieves the other half of its video.",
    ),
    ChartSpec(
        "Alignment",
        r"loss/align_\w+",
        "Cosine loss (2 - 2 cos) between the visible tokens or the pooled feature and the image "
        "teacher's features. In Stage 2: between the visible tokens and the target.",
    ),
    ChartSpec(
        "Pixels",
        r"loss/(pixels|noise|bound)(_\d+)?",
        "Losses of the diffusion decoder: the error of the predicted noise, the variational bound "
        "(which trains the variance), and their sum.",
    ),
    ChartSpec(
        "Conditioning gap",
        r"conditioning_gap",
        "Error of the predicted noise with the latents of a different clip, minus the error with "
        "the clip's own latents. At 0, the decoder ignores the latents, and only alignment trains "
        "the encoder.",
    ),
    ChartSpec(
        "Latent prediction",
        r"loss/predict_\d+|position_loss|clip_loss",
        "Cosine loss (2 - 2 cos) between prediction and target at the masked positions, for each "
        "mask. position_loss and clip_loss are the losses of the mean target of each position, and "
        "of each clip: predictions above clip_loss do not show where the content of a clip is.",
    ),
    ChartSpec(
        "Encoder gradients",
        r"encoder_grad/\w+",
        "Norm of each loss term's gradient with respect to the encoder (log scale). A term far "
        "below the others has little effect on the encoder.",
        log=True,
    ),
    ChartSpec(
        "Effective rank",
        r"(eval/)?(\w+_)?rank",
        "The number of directions that the features use: exponential of the entropy of the "
        "covariance spectrum. A value of 1 means collapse.",
    ),
    ChartSpec(
        "Standard deviation of features",
        r"(\w+_)?std",
        "Averaged over channels. A value of 0 means collapse.",
    ),
    ChartSpec(
        "Target variance explained by position",
        r"target_position_share",
        "Fraction of the target's variance that is explained by the position of the token.",
    ),
    ChartSpec(
        "Gradient norm", r"grad_norm", "Norm over all parameters, before clipping.", log=True
    ),
    ChartSpec("Learning rate", r"learning_rate", "Linear warm-up, then cosine decay."),
    ChartSpec(
        "Speed", r"clips_per_second", "Clips per second. The first value includes compilation."
    ),
    ChartSpec(
        "Waiting for data",
        r"data_wait|hosts/data_wait/max",
        "Fraction of the time that the loop waited for batches. With several hosts, a second line "
        "shows the host that waited longest.",
    ),
)


def make_charts(records: Sequence[Mapping[str, Any]], salt: str) -> list[dict[str, Any]]:
    """Draws the charts whose metrics occur in the records.

    Args:
      records: lines of metrics.jsonl; values may be missing or None.
      salt: text that makes SVG identifiers unique among the runs of a page.

    Returns:
      A list of dicts with `title`, `caption`, `svg` and `legend`, which lists (name, color, last
      value).
    """
    points = _find_points(records)
    changes = evaluation_metrics.find_changes(records)[-MAX_BREAKS:]
    charts = []
    for spec in CHARTS:
        found = sorted(name for name in points if re.fullmatch(spec.pattern, name))
        series = {name: points[name] for name in found[:MAX_LINES]}
        if series:
            legend = [
                (name.partition("/")[2] or name, color, describe_last(records, name))
                for name, color in zip(series, COLORS * 2, strict=False)
            ]
            is_evaluated = any(name.startswith(evaluation_metrics.PREFIX) for name in series)
            breaks = changes if is_evaluated else []
            svg = draw_lines(list(series.values()), spec.log, f"{salt} {spec.title}", breaks=breaks)
            caption = spec.caption
            if len(found) > MAX_LINES:
                caption += f" Only {MAX_LINES} of {len(found)} metrics are shown."
            if breaks:
                caption += (
                    " After each dotted line, other videos are evaluated: do not compare values "
                    "before and after it."
                )
            charts.append({"title": spec.title, "caption": caption, "svg": svg, "legend": legend})
    return charts


def _find_points(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, value) of the metrics that have a value."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if value is not None:
                points.setdefault(name, []).append((record["step"], value))
    return points


def draw_lines(
    series: Sequence[Sequence[tuple[int, float]]],
    log: bool,
    salt: str,
    positions: Sequence[int] | None = None,
    breaks: Sequence[int] = (),
) -> str:
    """Draws lines in the styles of `line_style` and returns an <svg> element.

    Args:
      series: points (step, value) of each line.
      log: whether the vertical axis is logarithmic.
      salt: text that makes SVG identifiers unique on a page.
      positions: positions of the lines in the sequence of styles; None for the order of the lines.
      breaks: steps, ascending, after which the lines are interrupted.
    """
    positions = range(len(series)) if positions is None else positions
    log = log and any(value > 0 for points in series for _, value in points)
    all_steps = {step for points in series for step, _ in points}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # settings of the user could start LaTeX
        matplotlib.rcParams.update(STYLE | {"svg.hashsalt": salt})
        figure = Figure(figsize=(4.2, 2.1), layout="constrained")
        axes = figure.add_subplot()
        for position, points in zip(positions, series, strict=True):
            color, dash = line_style(position)
            marker = "o" if len(points) < 12 else None
            steps, values = zip(*_interrupt(points, breaks), strict=True)
            values = [value if value > 0 or not log else math.nan for value in values]
            style = {"linewidth": 1.6, "marker": marker, "markersize": 3, "clip_on": False}
            axes.plot(steps, values, color=color, linestyle=dash, **style)
        for step in breaks:
            axes.axvline(step, color="#aab2bb", linewidth=0.8, linestyle="dotted")
        if log:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            low = min(value for points in series for _, value in points)
            if low >= 0:
                axes.set_ylim(bottom=0)
            else:
                axes.axhline(0, color="#aab2bb", linewidth=0.8)
        if len(all_steps) == 1:  # the ticks around a single step would be fractions
            axes.set_xlim(0, max(all_steps) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(which="both", length=0)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=NO_METADATA)
    return _responsive(out.getvalue())


def _interrupt(
    points: Sequence[tuple[int, float]], breaks: Sequence[int]
) -> list[tuple[int, float]]:
    """Returns the points with a NaN at each break; the point at the step itself is before it."""
    gaps = [(step, math.nan) for step in breaks]
    return sorted([*points, *gaps], key=lambda point: (point[0], math.isnan(point[1])))


def line_style(position: int) -> tuple[str, str]:
    """Returns the color and the dash style at a position in the sequence of styles."""
    rounds, number = divmod(position, len(COLORS))
    return COLORS[number], DASHES[rounds % len(DASHES)]


def _responsive(svg: str) -> str:
    """Returns the <svg> element without a fixed size, so that it fills its container."""
    start, end = svg.index("<svg"), svg.index(">", svg.index("<svg"))
    return re.sub(r' (width|height)="[^"]*"', "", svg[start:end]) + svg[end:]


def describe_last(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """Returns the last value of a metric as text, and whether it is finite; "" if there is none."""
    values = [record[name] for record in records if name in record]
    finite = [value for value in values if value is not None]
    if not values or values[-1] is not None:
        return format_value(finite[-1]) if finite else ""
    return f"{format_value(finite[-1])}, then not finite" if finite else "not finite"


def format_value(value: float) -> str:
    """Formats a number with three significant digits."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}"
