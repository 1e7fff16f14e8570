"""Kills tiny runs, injects faults, and checks that the results are bitwise equal.

    python benchmarks/fault_drill.py --kills=20 [--processes=2] [--faults=all|none|NAME,NAME]

Each kill is a SIGKILL at a random time: at the start, between steps, or in the middle of a save.
The same command then resumes the run. The results are compared with those of an uninterrupted run.
The drill prints a table and, as its last line, a JSON object. The exit code is 1 if anything was
lost.
"""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from drill_faults import FAULTS, FaultResult, NeedsRootError
from drill_run import ROOT, SAVE_STEPS, TOTAL_STEPS, DrillRun

from invnext_jax.checkpointing import reader

_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=0)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes of each run.", lower_bound=1)
_FAULTS = flags.DEFINE_string("faults", "all", f"all, none, or some of {','.join(FAULTS)}.")
_SEED = flags.DEFINE_integer("seed", 0, "Random seed for the times of the kills.")
_OUT = flags.DEFINE_string("out", "", "Folder for runs and logs; empty: a temporary one.")


def kill_once(run: DrillRun, rng: random.Random) -> tuple[str, int]:
    """Starts the run and kills it at a random time.

    Returns:
      A description of the time of the kill, and the step of the newest finished checkpoint.
    """
    before = run.finished_saves()
    run.start()
    moment = rng.choice(["start", "step", "save", "save"])
    if moment == "start":
        time.sleep(rng.uniform(0, 8))
    else:
        if rng.random() < 0.7:  # wait until this start has finished a save
            run.wait_for(lambda: run.finished_saves() != before)
        run.wait_for_step(run.last_logged() + rng.randint(1, 2 * SAVE_STEPS))
        if moment == "save":
            run.wait_for(run.is_saving)
        time.sleep(rng.uniform(0, 0.15))
    was_saving = run.is_saving()
    run.kill(rng)
    moment += " (incomplete)" if was_saving and run.is_saving() else ""
    return moment, run.finished_saves()[-1] if run.finished_saves() else 0


def drill_kills(
    base: pathlib.Path, reference: DrillRun, kills: int
) -> tuple[list[list[str]], dict]:
    """Kills runs `kills` times in total.

    A new run starts when the previous one has ended or has been killed ten times.

    Returns:
      The rows of the table and the counts for the JSON object.
    """
    rng = random.Random(_SEED.value)
    rows, equal, lost, number = [], 0, 0, 0
    run = None
    while len(rows) < kills:
        if run is None:
            number += 1
            run, run_rows = DrillRun(base / f"killed{number}", base, reference.count), []
        moment, newest = kill_once(run, rng)
        run_rows.append([f"SIGKILL {moment}", newest])
        rows.append(run_rows[-1])
        ended = newest >= TOTAL_STEPS
        if len(rows) == kills or ended or len(run_rows) == 10:
            run.finish()
            lost += count_lost_steps(run, run_rows)
            same = is_equal(run, reference)
            equal += len(run_rows) * same
            for row in run_rows:
                row[1:] = [f"resumed from step {row[1]}", "0", "yes" if same else "NO"]
            run = None
        print(f"kill {len(rows)} of {kills}: {moment}, newest save {newest}", flush=True)
    return rows, {"bitwise_equal": equal, "lost_steps": lost}


def count_lost_steps(run: DrillRun, rows: list) -> int:
    """Counts the steps in finished checkpoints that were not found by the start after a kill."""
    lost = 0
    for start, (_, newest) in enumerate(rows, 1):
        resumed = run.resumed_step(start)
        # A start that was killed early has not yet logged the step from which it resumes.
        has_logged = resumed is not None or "parameters" in run.logs[start]
        lost += max(0, newest - (resumed or 0)) if has_logged else 0
    return lost


def is_equal(run: DrillRun, reference: DrillRun) -> bool:
    """Returns whether state, data position and metrics are bitwise equal to the reference.

    Timings are not compared. If the workdir was removed, its first metrics records may be missing.
    """
    if run.finished_saves()[-1:] != reference.finished_saves()[-1:]:
        print(f"{run.workdir}: saved {run.finished_saves()}, not {reference.finished_saves()}")
        return False
    folders = run.newest_checkpoint(), reference.newest_checkpoint()
    result, expected = (reader.read_arrays(folder) for folder in folders)
    differ = [] if jax.tree.structure(result) == jax.tree.structure(expected) else ["structure"]
    if not differ:
        same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), result, expected)
        differ = [name for name, tree in same.items() if not all(jax.tree.leaves(tree))]
    result, expected = (reader.read_json(folder, "data") for folder in folders)
    differ += [] if result == expected else ["data"]
    result, expected = run.records(), reference.records()
    differ += [] if result and result == expected[-len(result) :] else ["records"]
    differ += [] if len(result) == len(expected) or run.was_removed else ["number of records"]
    for name in differ:
        print(f"{run.workdir} differs in: {name}")
    return not differ


def main(argv: Sequence[str]) -> None:
    """Runs the drill and prints its results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    base = pathlib.Path(_OUT.value or tempfile.mkdtemp(prefix="fault_drill_")).absolute()
    base.mkdir(parents=True, exist_ok=True)
    world = [sys.executable, str(ROOT / "launch/make_world.py"), f"--out={base / 'world'}"]
    subprocess.run([*world, "--split=train", "--videos=16"], check=True, capture_output=True)
    reference = DrillRun(base / "reference", base, _PROCESSES.value)
    code = reference.finish()
    if code:
        log = reference.logs[-1][-2000:]
        sys.exit(f"error: the uninterrupted run ended with code {code}:\n{log}")
    print(f"the uninterrupted run is finished: {reference.workdir}", flush=True)
    rows, counts = drill_kills(base, reference, _KILLS.value)
    names = {"all": list(FAULTS), "none": []}.get(_FAULTS.value, _FAULTS.value.split(","))
    outcomes = {}
    for name in names:
        try:
            result = FAULTS[name](base, _PROCESSES.value)
        except NeedsRootError as error:
            result = FaultResult(str(error), skipped=True)
        same = "-" if result.run is None else "yes" if is_equal(result.run, reference) else "NO"
        passed = result.passed and same != "NO"
        outcomes[name] = "skipped" if result.skipped else "passed" if passed else "FAILED"
        rows.append([name, result.outcome, str(result.lost_steps), same])
        print(f"{name}: {outcomes[name]}: {result.outcome}", flush=True)
    print_table([["fault", "outcome", "lost steps", "equal"], *rows])
    if not _OUT.value:
        shutil.rmtree(base, ignore_errors=True)
    print(json.dumps({"kills": _KILLS.value, **counts, "faults": outcomes}))
    failed = counts["bitwise_equal"] < _KILLS.value or counts["lost_steps"]
    sys.exit(1 if failed or "FAILED" in outcomes.values() else 0)


def print_table(rows: list[list[str]]) -> None:
    """Prints a table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    app.run(main)
