"""Curves of a run's metrics.jsonl as small SVG charts for a web page."""

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Told apart by colour-blind readers too.
COLORS = ("#1f5f99", "#c8502d", "#3c8f5a", "#8a5fb0", "#b58900", "#5b6770")
INK, FAINT = "#3b4450", "#dfe3e8"
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "font.size": 9,
    "axes.edgecolor": "#aab2bb",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclasses.dataclass(frozen=True)
class ChartSpec:
    """One chart: the metrics whose whole name matches `pattern`, and what to read in it."""

    title: str
    pattern: str
    caption: str
    log: bool = False


CHARTS = (
    ChartSpec("Loss", r"loss", "What the optimiser sees: the weighted sum of all terms."),
    ChartSpec(
        "Alignment",
        r"loss/align_\w+",
        "Distance 2 - 2 cos of the visible tokens, and of the pooled feature, to the frozen image "
        "teacher (in Stage 2 of the visible tokens to the target); 0 is agreement.",
    ),
    ChartSpec(
        "Pixels",
        r"loss/(pixels|noise|bound)(_\d+)?",
        "The diffusion decoder: error of the predicted noise, the bound that trains its variance, "
        "and their sum.",
    ),
    ChartSpec(
        "Conditioning gap",
        r"conditioning_gap",
        "Noise error given another clip's latents minus that given its own. At zero the decoder "
        "ignores the encoder, and Stage 1 is alignment alone.",
    ),
    ChartSpec(
        "Latent prediction",
        r"loss/predict_\d+|position_loss",
        "Distance 2 - 2 cos to the target at the masked places, for each kind of mask; "
        "position_loss is what knowing nothing but the place would reach.",
    ),
    ChartSpec(
        "Gradient at the encoder",
        r"encoder_grad/\w+",
        "Norm of each loss term's gradient at the encoder (log scale): a term far below the others "
        "teaches it nothing.",
        log=True,
    ),
    ChartSpec(
        "Effective rank",
        r"(\w+_)?rank",
        "How many directions the features use: the exponential of the entropy of their spectrum. "
        "One would be collapse.",
    ),
    ChartSpec(
        "Feature spread", r"(\w+_)?std", "Standard deviation of the features, mean over channels."
    ),
    ChartSpec(
        "Position share of the target",
        r"target_position_share",
        "Share of the target's variance that a token's place explains without seeing the clip.",
    ),
    ChartSpec("Gradient norm", r"grad_norm", "Of all parameters, before clipping.", log=True),
    ChartSpec("Learning rate", r"learning_rate", "Warm-up, then cosine."),
    ChartSpec("Speed", r"clips_per_second", "Clips a second; the first one holds compilation."),
    ChartSpec(
        "Waiting for data", r"data_wait", "Share of the time that the loop waited for a batch."
    ),
)


def make_charts(records: Sequence[Mapping[str, Any]], salt: str) -> list[dict[str, Any]]:
    """Draws every plan that the records have values for.

    Args:
      records: of metrics.jsonl; values may be missing or None.
      salt: makes the identifiers inside the pictures differ from those of other runs.

    Returns:
      For each chart `title`, `caption`, `svg` and `legend`: (name, colour, last value).
    """
    names = sorted({name for record in records for name in record} - {"step"})
    charts = []
    for plan in CHARTS:
        series = {}
        for name in names:
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            if points and re.fullmatch(plan.pattern, name):
                series[name] = points
        if series:
            legend = [
                (name.partition("/")[2] or name, color, format_value(points[-1][1]))
                for (name, points), color in zip(series.items(), COLORS * 2, strict=False)
            ]
            svg = _draw(list(series.values()), plan.log, f"{salt} {plan.title}")
            charts.append(
                {"title": plan.title, "caption": plan.caption, "svg": svg, "legend": legend}
            )
    return charts


def _draw(series: Sequence[Sequence[tuple[int, float]]], log: bool, salt: str) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(4.2, 2.1), layout="constrained")
        axes = figure.add_subplot()
        for points, color in zip(series, COLORS * 2, strict=False):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 12 else None
            values = [value if value > 0 or not log else math.nan for value in values]
            look = {"linewidth": 1.6, "marker": marker, "markersize": 3, "clip_on": False}
            axes.plot(steps, values, color=color, **look)
        if log and any(value > 0 for points in series for _, value in points):
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            low = min(value for points in series for _, value in points)
            if low >= 0:
                axes.set_ylim(bottom=0)
            else:
                axes.axhline(0, color="#aab2bb", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(which="both", length=0)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=NO_METADATA)
    return _responsive(out.getvalue())


def _responsive(svg: str) -> str:
    """The bare <svg> element, as wide as its place on the page."""
    start, end = svg.index("<svg"), svg.index(">", svg.index("<svg"))
    return re.sub(r' (width|height)="[^"]*"', "", svg[start:end]) + svg[end:]


def format_value(value: float) -> str:
    """Three digits that matter."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}"
