"""Kills tiny runs, breaks what they stand on, and compares what comes out bit by bit.

    python benchmarks/fault_drill.py --kills=20 [--processes=2] [--faults=all|none|NAME,NAME]

Each kill is a SIGKILL at a random moment: at the start, between steps, or in the middle of a save.
The same command then goes on. Prints a table and, as its last line, one JSON object; the exit code
is 1 if anything was lost.
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
from drilled import ROOT, SAVE_STEPS, TOTAL_STEPS, DrilledRun

from invnext_jax.checkpointing import reader

_KILLS = flags.DEFINE_integer("kills", 20, "How often a run is killed.", lower_bound=0)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes of each run.", lower_bound=1)
_FAULTS = flags.DEFINE_string("faults", "all", f"all, none, or some of {','.join(FAULTS)}.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_OUT = flags.DEFINE_string("out", "", "Folder for runs and logs; a temporary one if empty.")


def kill_once(run: DrilledRun, chance: random.Random) -> tuple[str, int]:
    """Starts the run, kills it at a random moment; gives the moment and the steps lost.

    Lost are the steps of a finished save that the next start does not find.
    """
    before = run.finished_saves()
    run.start()
    moment = chance.choice(["start", "step", "save", "save"])
    if moment == "start":
        time.sleep(chance.uniform(0, 8))
    else:
        if chance.random() < 0.7:  # not before this start has finished a save of its own
            run.wait_for(lambda: run.finished_saves() != before)
        run.wait_for_step(run.last_logged() + chance.randint(1, 2 * SAVE_STEPS))
        if moment == "save":
            run.wait_for(run.is_saving)
        time.sleep(chance.uniform(0, 0.15))
    half = run.is_saving()
    run.kill(chance)
    moment += " (half-written)" if half and run.is_saving() else ""
    return moment, run.finished_saves()[-1] if run.finished_saves() else 0


def drill_kills(base: pathlib.Path, whole: DrilledRun, kills: int) -> tuple[list[list[str]], dict]:
    """Kills a run so often; a run that has come to its end is followed by a new one."""
    chance = random.Random(_SEED.value)
    rows, equal, lost, number = [], 0, 0, 0
    run = None
    while len(rows) < kills:
        if run is None:
            number += 1
            run, mine = DrilledRun(base / f"killed{number}", base, whole.count), []
        moment, newest = kill_once(run, chance)
        mine.append([f"SIGKILL {moment}", newest])
        rows.append(mine[-1])
        ended = newest >= TOTAL_STEPS
        if len(rows) == kills or ended or len(mine) == 10:
            run.finish()
            lost += count_lost(run, mine)
            same = is_equal(run, whole)
            equal += len(mine) * same
            for row in mine:
                row[1:] = [f"went on after the save of step {row[1]}", "0", "yes" if same else "NO"]
            run = None
        print(f"kill {len(rows)} of {kills}: {moment}, newest save {newest}", flush=True)
    return rows, {"bitwise_equal": equal, "lost_steps": lost}


def count_lost(run: DrilledRun, kills: list) -> int:
    """Steps of finished saves that the start after each kill did not go on from."""
    lost = 0
    for (_, newest), said in zip(kills, run.said[1:], strict=True):
        run.said.append(said)
        resumed = run.resumed_at()
        run.said.pop()
        told = resumed is not None or "parameters" in said  # else killed before it could tell
        lost += max(0, newest - (resumed or 0)) if told else 0
    return lost


def is_equal(run: DrilledRun, whole: DrilledRun) -> bool:
    """Whether state, position in the data and records are bit by bit the uninterrupted run's.

    Speeds differ. Records that went with a removed folder may be missing; others may not.
    """
    if run.finished_saves()[-1:] != whole.finished_saves()[-1:]:
        print(f"{run.workdir}: saved {run.finished_saves()}, not {whole.finished_saves()}")
        return False
    folders = [r.workdir / "checkpoints" / str(r.finished_saves()[-1]) for r in (run, whole)]
    found, wanted = (reader.read_arrays(folder) for folder in folders)
    differ = [] if jax.tree.structure(found) == jax.tree.structure(wanted) else ["structure"]
    if not differ:
        same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), found, wanted)
        differ = [name for name, tree in same.items() if not all(jax.tree.leaves(tree))]
    found, wanted = (reader.read_json(folder, "data") for folder in folders)
    differ += [] if found == wanted else ["data"]
    found, wanted = run.records(), whole.records()
    differ += [] if found and found == wanted[-len(found) :] else ["records"]
    differ += [] if len(found) == len(wanted) or run.was_removed else ["number of records"]
    for name in differ:
        print(f"{run.workdir} differs in: {name}")
    return not differ


def main(argv: Sequence[str]) -> None:
    """Drills."""
    del argv
    logging.set_verbosity(logging.WARNING)
    base = pathlib.Path(_OUT.value or tempfile.mkdtemp(prefix="fault_drill_")).absolute()
    base.mkdir(parents=True, exist_ok=True)
    world = [sys.executable, str(ROOT / "launch/make_world.py"), f"--out={base / 'world'}"]
    subprocess.run([*world, "--split=train", "--videos=16"], check=True, capture_output=True)
    whole = DrilledRun(base / "whole", base, _PROCESSES.value)
    code = whole.finish()
    if code:
        sys.exit(f"error: the uninterrupted run ended with code {code}:\n{whole.said[-1][-2000:]}")
    print(f"the uninterrupted run is done: {base / 'whole'}", flush=True)
    rows, result = drill_kills(base, whole, _KILLS.value)
    names = {"all": list(FAULTS), "none": []}.get(_FAULTS.value, _FAULTS.value.split(","))
    outcomes = {}
    for name in names:
        try:
            outcome = FAULTS[name](base, _PROCESSES.value)
        except NeedsRootError as error:
            outcome = FaultResult(str(error), skipped=True)
        same = "-" if outcome.run is None else "yes" if is_equal(outcome.run, whole) else "NO"
        good = outcome.good and same != "NO"
        outcomes[name] = "skipped" if outcome.skipped else "as it should" if good else "FAILED"
        rows.append([name, outcome.happened, str(outcome.lost), same])
        print(f"{name}: {outcomes[name]}: {outcome.happened}", flush=True)
    print_table([["fault", "what happened", "lost steps", "equal"], *rows])
    if not _OUT.value:
        shutil.rmtree(base, ignore_errors=True)
    print(json.dumps({"kills": _KILLS.value, **result, "faults": outcomes}))
    bad = result["bitwise_equal"] < _KILLS.value or result["lost_steps"]
    sys.exit(1 if bad or "FAILED" in outcomes.values() else 0)


def print_table(rows: list[list[str]]) -> None:
    """Columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    app.run(main)
