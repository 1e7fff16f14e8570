"""Formats a plan as text for `launch/plan.py`."""

from collections.abc import Mapping
from typing import Any


def format_plan(plan: dict[str, Any]) -> str:
    """Formats a plan as a table for the terminal.

    Args:
      plan: output of `plan.make_plan`, optionally merged with the outputs of `compiled_step`.
    """
    untrained, groups = plan["untrained_groups"], plan["parameters"]
    trained = sum(size for name, size in groups.items() if name not in untrained)
    frozen = sum(groups.values()) - trained + sum(plan["frozen_parameters"].values())
    axes = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    recipe = plan["recipe"]
    rows = [
        (
            "run",
            f"{plan['stage']} {plan['variant']}, {plan['frames']} frames, remat {plan['remat']}",
        ),
        ("devices", f"{plan['devices']} x {plan['device']}" + (f" ({axes})" if axes else "")),
        (
            "recipe",
            f"{recipe['total_steps']:,} steps, {recipe['epochs']:.4g} epochs of "
            f"{recipe['videos']:,} videos, warm-up of {recipe['warmup_steps']:,} steps, learning "
            f"rate {recipe['learning_rate']:.3g} to {recipe['min_learning_rate']:.3g}",
        ),
        ("batch", f"{plan['batch']} clips, {plan['clips_of_a_device']:g} per device at a time"),
        ("parameters", f"{trained / 1e6:.1f} M trained, {frozen / 1e6:.1f} M frozen"),
        *(
            (f"  {n} (frozen)" if n in untrained else f"  {n}", f"{size / 1e6:.1f} M")
            for n, size in groups.items()
        ),
        *((f"  {n} (frozen)", f"{s / 1e6:.1f} M") for n, s in plan["frozen_parameters"].items()),
        ("memory per device", f"{_gb(plan['peak_bytes'])} of {_gb(plan['memory_bytes'])}"),
        *((f"  {name}", _gb(size)) for name, size in plan["held_bytes"].items() if size),
        ("  activations per clip", _gb(plan["activation_bytes_per_clip"])),
        (
            "largest batch",
            f"{plan['clips_that_fit_a_device']} clips per device, {plan['batch_that_fits']} in all"
            + ("" if plan["fits"] else ": TOO SMALL FOR THIS RUN"),
        ),
        ("matrix products per step", f"{plan['step_flops'] / 1e12:.4g} TFLOP"),
        *((f"  {name}", f"{flops / 1e12:.4g} TFLOP") for name, flops in plan["flops"].items()),
        ("  of these in float32", f"{plan['float32_flops'] / 1e12:.4g} TFLOP"),
        ("  recomputed", f"{plan['recomputed_flops'] / 1e12:.4g} TFLOP"),
        *((f"sent over {a}", _gb(size)) for a, size in plan["sent_bytes"].items() if size),
        *((f"time of {name}", f"{s:.3f} s") for name, s in plan["seconds"].items()),
        (
            "roofline of the step",
            f"{plan['step_seconds']:.3f} s, {plan['clips_per_second']:.4g} clips/s",
        ),
        ("roofline of the run", f"{plan['run_seconds'] / 3600:.4g} hours"),
        ("MFU at the roofline", f"{100 * plan['mfu']:.0f} %"),
    ]
    table = "\n".join(f"{name:<26}{value}" for name, value in rows + _compiled_rows(plan))
    return "\n".join([table, *_program_lines(plan)])


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _compiled_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of a compiled step; none without it."""
    if "xla_argument_bytes" not in plan:
        return []
    used = plan["xla_argument_bytes"] + plan["xla_temporary_bytes"]
    rows = [
        ("xla argument bytes", _gb(plan["xla_argument_bytes"])),
        ("xla temporary bytes", _gb(plan["xla_temporary_bytes"])),
        ("xla bytes", f"{_gb(used)}, {used / plan['peak_bytes']:.2f} of the plan"),
    ]
    if plan.get("xla_peak_bytes"):
        rows.append(("xla peak bytes", _gb(plan["xla_peak_bytes"])))
    for kind, total in plan.get("xla_collectives", {}).items():
        rows.append((f"xla {kind}", f"{total['times']} times, {_gb(total['sent_bytes'])} sent"))
    return rows


def _program_lines(plan: Mapping[str, Any]) -> list[str]:
    """Returns the lines on a step that was compiled for a TPU or GPU; none without it."""
    if "xla_step_seconds" not in plan:
        return []
    lines = [f"\nThe step was compiled in {plan['xla_compile_seconds']:.0f} s. Attention layers:"]
    for choice in plan["xla_attention"]:
        size = f"{choice['queries']} queries, {choice['keys']} keys, {choice['heads']} heads of "
        size += f"width {choice['width']}, {choice['dtype']}"
        if choice["window"] is not None:
            size += f", window of {choice['window']} on each side"
        reason = f": {choice['reason']}" if choice["reason"] else ""
        lines.append(f"  {choice['kernel']:<8}{size}{reason}")
    calls = [f"{name} {count} times" for name, count in plan["xla_kernels"].items()]
    lines.append(f"Attention kernels of a step: {', '.join(calls) or 'none'}")
    lines.append(f"Arrays of attention logits: {'' if plan['xla_logits'] else 'none'}")
    for row in plan["xla_logits"]:
        size = f"{row['shape']}, {_gb(row['bytes'])}, {row['times']} times"
        lines.append(f"  {size}, {row['source']}")
    if plan["xla_unknown_loops"]:
        lines.append(f"Loops counted as one iteration: {plan['xla_unknown_loops']}")
    names = {
        "compiler": "estimated by the compiler",
        "roofline": "at the roofline",
        "link": "waiting for collectives",
        "overlapped": "of collectives that overlap with the rest",
    }
    parts = [f"{s:.3f} s {names[basis]}" for basis, s in plan["xla_seconds"].items() if s]
    lines += [
        f"Estimated time of a step: {plan['xla_step_seconds']:.3f} s, "
        f"MFU {100 * plan['xla_mfu']:.0f} % ({', '.join(parts)})",
        "Most expensive instructions:",
    ]
    for row in plan["xla_instructions"]:
        time = f"{1e3 * row['seconds']:8.2f} ms {100 * row['share']:5.1f} %"
        lines.append(
            f"  {time}  {row['times']:>4} x {row['name']} ({row['basis']}), {row['source']}, "
            f"{row['operation']}"
        )
    return lines


def format_fit(plan: Mapping[str, Any], found: Mapping[str, Any] | None, max_devices: int) -> str:
    """Formats the result of the search for options with which a run fits.

    Args:
      plan: the plan of the run that does not fit, with its "fitting_command".
      found: the plan that `fitting.find_fit` found, or None.
      max_devices: largest number of devices in the search.
    """
    asked = f"{plan['devices']} x {plan['device']}"
    if found is None:
        return (
            f"\nThis run does not fit on {asked}, nor on up to {max_devices} devices, with any "
            "accumulation, rematerialization and mesh. Use devices with more memory, a smaller "
            "model, or fewer or smaller frames."
        )
    place = f"{found['devices']} x {found['device']}"
    lead = f"This run does not fit on {asked} as it is configured, but with these options:"
    if found["devices"] != plan["devices"]:
        lead = f"This run does not fit on {asked}, but on {place} with these options:"
    peak, size = (found[name] / 1e9 for name in ("peak_bytes", "memory_bytes"))
    return (
        f"\n{lead} {found['clips_of_a_device']:g} clips per device at a time, {peak:.1f} of "
        f"{size:.0f} GB, step of {found['step_seconds']:.3g} s at the roofline:\n"
        f"{plan['fitting_command']}"
    )
