"""Writes the tables of docs/real_run.md: what the planner predicts for the presets.

    python docs/scripts/generate_presets.py

The tables are between the markers in the page. A test compares them with the output of this script.
To use other prices or another share of the roofline, change the constants.
"""

import importlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from configs import machines
from invnext_jax.planning import memory, plan
from invnext_jax.planning.devices import DEVICES
from invnext_jax.planning.shapes import make_shapes

PAGE = pathlib.Path(__file__).parents[1] / "real_run.md"
START, END = "<!-- presets: begin -->", "<!-- presets: end -->"
VARIANTS = ("base", "large", "1b")
SHARE = 0.4  # assumed speed as a part of the roofline
PRICES = {"h100": 3.0, "h200": 3.5, "v5p": 4.2, "v6e": 2.7}  # example prices, USD per device-hour
PAPER_A100_HOURS = {
    ("stage1", "base"): 1500,
    ("stage1", "large"): 3600,
    ("stage2", "base"): 3400,
    ("stage2", "large"): 9700,
}
A100_PRESET = "h100x8"  # devices with the memory of an A100


class PlannedPreset(NamedTuple):
    """A preset and its plan.

    Attributes:
      machine: name of the machine in `machines.MACHINES`.
      plan: see `plan.describe_plan`.
      bfloat16_hours: hours at the roofline if the products of the decoder are in bfloat16.
    """

    machine: str
    plan: dict[str, Any]
    bfloat16_hours: float


def plan_presets(stage: str, variant: str) -> Iterator[PlannedPreset]:
    """Plans the presets of a stage and a variant. Their model is the same.

    The first plan is that of `A100_PRESET` on A100s.
    """
    get_config = importlib.import_module(f"configs.{stage}").get_config
    config, recipe = plan.check_config(get_config(f"{variant},{A100_PRESET}"))
    shapes = make_shapes(config, machines.MACHINES[A100_PRESET]["devices"])
    activations = memory.activation_bytes(shapes)
    a100 = {"a100": {**machines.MACHINES[A100_PRESET], "device": "a100"}}
    for name, machine in (a100 | machines.MACHINES).items():
        given = get_config(f"{variant},{A100_PRESET if name in a100 else name}")
        options = {"accumulate": given.accumulate, "remat": given.remat}
        options |= {f"mesh.{axis}": size for axis, size in given.mesh.items()}
        made = shapes.replace(options, machine["devices"])
        planned = plan.describe_plan(made, machine["device"], recipe, activations)
        fast = made.replace({"decoder.dtype": "bfloat16"}, machine["devices"])
        times = plan.roofline(fast, DEVICES[machine["device"]], activations.kept)
        hours = config.total_steps * max(times.values()) / 3600
        yield PlannedPreset(name, planned, hours)


def format_row(stage: str, variant: str, preset: PlannedPreset) -> str:
    """Returns the row of a preset in the table of its stage."""
    planned, hours = preset.plan, preset.plan["run_seconds"] / 3600
    device_hours = hours * planned["devices"] / SHARE
    cost = device_hours * PRICES[planned["device"]]
    cells = [
        f"`{variant},{preset.machine}`",
        f"{planned['accumulate']} x {planned['clips_of_a_device']:g}",
        f"{planned['peak_bytes'] / 1e9:.0f} of {planned['memory_bytes'] / 1e9:.0f} GB",
        f"{planned['clips_per_second']:.0f}",
        _format_hours(hours),
        *([_format_hours(preset.bfloat16_hours)] if stage == "stage1" else []),
        _format_hours(hours / SHARE),
        f"{device_hours:,.0f}",
        f"{float(f'{cost:.2g}'):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"


def format_header(stage: str) -> str:
    """Returns the first two lines of the table of a stage."""
    names = [
        f"`configs/{stage}.py:`",
        "microbatches x clips per device",
        "memory per device",
        "clips/s at the roofline",
        "run at the roofline",
        *(["with `decoder.dtype=bfloat16`"] if stage == "stage1" else []),
        f"run at {SHARE * 100:.0f} % of the roofline",
        "device-hours",
        "cost in USD",
    ]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def make_tables() -> str:
    """Returns the tables of both stages, and that of A100-hours."""
    blocks, a100_rows = [], []
    for number, stage in enumerate(("stage1", "stage2"), 1):
        rows = []
        for variant in VARIANTS:
            a100, *presets = plan_presets(stage, variant)
            rows += [format_row(stage, variant, preset) for preset in presets]
            paper = PAPER_A100_HOURS.get((stage, variant))
            a100_rows.append(format_a100_row(number, variant, a100, paper))
        blocks.append("\n".join([format_header(stage), *rows]))
    names = ("run", "paper", "roofline", "roofline with `decoder.dtype=bfloat16`")
    header = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    blocks.append("\n".join([header, *a100_rows]))
    return "\n\n".join(blocks)


def format_a100_row(number: int, variant: str, a100: PlannedPreset, paper: int | None) -> str:
    """Returns the row of a run in the table of A100-hours."""
    devices, hours = a100.plan["devices"], a100.plan["run_seconds"] / 3600
    cells = [
        f"Stage {number} {'1B' if variant == '1b' else variant.capitalize()}",
        f"{paper:,}" if paper else "-",
        f"{hours * devices:,.0f}",
        f"{a100.bfloat16_hours * devices:,.0f}" if number == 1 else "-",
    ]
    return f"| {' | '.join(cells)} |"


def make_page() -> str:
    """Returns the page with new tables."""
    page = PAGE.read_text()
    start, end = page.index(START) + len(START), page.index(END)
    return f"{page[:start]}\n\n{make_tables()}\n\n{page[end:]}"


if __name__ == "__main__":
    PAGE.write_text(make_page())
    print(f"Wrote {PAGE}")
