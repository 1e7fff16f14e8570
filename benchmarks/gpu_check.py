"""Checks and measurements that need a GPU: `make gpu-check`, or python -m benchmarks.gpu_check.

It compares the attention kernels with unfused attention, trains both stages at full size for a few
steps with and without options, and runs the same step in PyTorch if it is installed. Each part runs
in a separate process, so that one that fails or takes too long does not affect the others. After
each part, the script writes docs/performance-gpu.md. The last line of its output is a JSON object,
and the exit status is 1 if a check fails. The clips are random, so it needs only jax, flax, optax,
einops, numpy and ml_collections.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys
import time

from benchmarks.gpu import page
from invnext_jax.planning import devices

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance-gpu.md"
PARTS = ("kernels", "steps", "pytorch", "options", "sizes")
OPTIONS = (  # of the image teacher and the decoder, measured with Stage 1
    {"quantize_frozen": "float8"},
    {"quantize_frozen": "int8"},
    {"decoder.dtype": "bfloat16"},
)


def parse(arguments):
    """Parses the command-line flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["base", "large"])
    parser.add_argument("--stages", nargs="+", default=["stage1", "stage2"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--clips", type=int, default=32, help="clips per device; halved until they fit"
    )
    parser.add_argument(
        "--side", type=int, default=8192, help="rows and columns of the matrix product"
    )
    parser.add_argument("--minutes", type=float, default=8, help="time limit of all parts")
    parser.add_argument("--part_minutes", type=float, default=3, help="time limit of each part")
    parser.add_argument(
        "--autotune", action="store_true", help="also compile the PyTorch step: max-autotune"
    )
    parser.add_argument("--out", type=pathlib.Path, default=PAGE)
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def list_parts(flags):
    """Yields the arguments of each process: the flag that selects it, then those of `run_part`."""
    first, *others = flags.sizes
    yield "kernels", {"kind": "kernels", "tiny": first == "tiny", "side": flags.side}
    step = {"kind": "step", "clips": flags.clips, "steps": flags.steps}
    for stage in flags.stages:
        yield "steps", {**step, "stage": stage, "size": first}
    for compiled in (False, True) if flags.autotune else (False,):
        for stage, kernel in itertools.product(flags.stages, ("cudnn", "flash")):
            pytorch = {"kind": "pytorch", "stage": stage, "size": first, "kernel": kernel}
            yield "pytorch", {**pytorch, "steps": flags.steps, "compiled": compiled}
    for overrides in OPTIONS if "stage1" in flags.stages else ():
        yield "options", {**step, "stage": "stage1", "size": first, "overrides": overrides}
    for size, stage in itertools.product(others, flags.stages):
        yield "sizes", {**step, "stage": stage, "size": size}


def run_part(part):
    """Runs one part in this process and returns its row."""
    part = dict(part)
    kind = part.pop("kind")
    if kind == "kernels":
        from benchmarks.gpu import kernels

        return kernels.check_kernels(**part)
    if kind == "step":
        from benchmarks.gpu import steps

        return steps.measure_step(**part)
    from benchmarks.gpu import pytorch

    return pytorch.measure_pytorch(**part)


def start_part(part, limit, left):
    """Runs one part in a new process.

    Args:
      part: the arguments of `run_part`.
      limit: seconds that a part may take.
      left: seconds that are left for all parts.

    Returns:
      Its row, or a dict with a reason in "failed" or "skipped".
    """
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", json.dumps(part)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, check=False, timeout=min(limit, left)
        )
    except subprocess.TimeoutExpired:
        if left < limit:
            return {"skipped": "the time of all parts was over before it ended"}
        return {"failed": f"it took longer than {limit:.0f} seconds"}
    if done.returncode:
        return {"failed": f"it ended with status {done.returncode}; its messages are above"}
    return json.loads(done.stdout.splitlines()[-1])


def add_part(result, part, *, limit, left):
    """Runs one part and adds its row to the result."""
    part, reason = complete_part(result, part)
    if left < 1:
        reason = "no time was left"
    sent = {key: value for key, value in part.items() if key != "peer"}
    row = {"skipped": reason} if reason else start_part(sent, limit, left)
    print(f"{name_part(part)}: {row}", file=sys.stderr, flush=True)
    add_row(result, part, row)


def add_row(result, part, row):
    """Adds the row of a part to the result."""
    for key, sentences in (("failed", "wrong"), ("skipped", "skipped")):
        if key in row:
            result[sentences].append(f"{name_part(part)}: {row[key]}")
            return
    result["wrong"] += row.pop("wrong")
    if part["kind"] == "kernels":
        result.update(row)
        device = devices.find_device(row["device"])
        result["peak_tflops"] = device and device.peak / 1e12
    elif part["kind"] == "step":
        if product := result["matmul_tflops"]:
            row["of_ceiling"] = round(row["tflops"] / product, 3)
        result["steps"].append(row)
    else:
        row["ratio"] = round(row["seconds"] / part["peer"], 3)
        result["pytorch"].append(row)


def name_part(part):
    """Returns the name of a part in messages."""
    names = (str(part[key]) for key in ("kind", "stage", "size", "kernel") if key in part)
    options = (f"{name}={value}" for name, value in part.get("overrides", {}).items())
    return " ".join([*names, *options])


def complete_part(result, part):
    """Gives a PyTorch step the batch of the JAX step that it is compared with.

    Returns:
      The part, and the reason for which it cannot run, or "".
    """
    if part["kind"] != "pytorch":
        return part, ""
    if not importlib.util.find_spec("torch"):
        return part, "PyTorch is not installed"
    for row in result["steps"]:
        if (row["stage"], row["size"], row["options"]) == (part["stage"], part["size"], ""):
            clips = row["clips"] * result["devices"]
            return {**part, "clips": clips, "peer": row["seconds"]}, ""
    return part, "there is no JAX step to compare it with"


def main(arguments=None):
    """Runs all parts, writes the page, and exits with status 1 if a check failed."""
    flags = parse(arguments)
    if flags.part:
        print(json.dumps(run_part(flags.part)))
        return
    result = {
        **{"device": "unknown device", "devices": 1, "jax": "", "matmul_tflops": None},
        **{"peak_tflops": None, "date": datetime.date.today().isoformat()},
        **{"steps": [], "pytorch": [], "kernels": [], "wrong": [], "skipped": []},
    }
    deadline = time.monotonic() + 60 * flags.minutes
    for name, part in list_parts(flags):
        if name in flags.parts:
            left = deadline - time.monotonic()
            add_part(result, part, limit=60 * flags.part_minutes, left=left)
            flags.out.write_text(page.format_page(result))
    print(f"wrote {flags.out}", file=sys.stderr)
    print(json.dumps(result))
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
