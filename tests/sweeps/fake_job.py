"""A fast stand-in for launch/main.py and launch/evaluate.py in the tests of sweeps.

    python fake_job.py --workdir=W --config.total_steps=N --config.init_gain=X \\
        [--config.init_from=W0]
    python fake_job.py --workdir=W --checkpoint=W0

It counts to N with a state file, as a resumable run does, and writes the files that a sweep reads.
The loss is X plus the loss of the run that it starts from. Each start, end and step is logged in
`<workdir>/../../history.jsonl`, from which a test sees what ran twice. The file `<workdir>.fail`
lets it fail once. FAKE_FAIL and FAKE_NAN name jobs that fail, or whose result is not finite. Each
attempt of a training stops after FAKE_STOP_AFTER steps, as after SIGTERM.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

SECONDS = float(os.environ.get("FAKE_STEP_SECONDS", "0.02"))


def main():
    options = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
    workdir = Path(options["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    history = workdir.parents[1] / "history.jsonl"

    def record(event, **fields):
        line = json.dumps({"job": workdir.name, "event": event, "pid": os.getpid(), **fields})
        with open(history, "a") as file:
            file.write(line + "\n")

    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    record("start")
    print(f"{workdir.name} starts")
    fail = workdir.with_name(f"{workdir.name}.fail")
    if fail.exists() or os.environ.get("FAKE_FAIL") == workdir.name:
        fail.unlink(missing_ok=True)
        print("it fails, as the test asked")
        sys.exit(int(os.environ.get("FAKE_EXIT_CODE", "1")))
    if "checkpoint" in options:
        evaluate(workdir, options)
    else:
        train(workdir, options, record, stopping)
    record("end")


def train(workdir, options, record, stopping):
    total, saved = int(options["config.total_steps"]), workdir / "step.json"
    step = json.loads(saved.read_text()) if saved.exists() else 0
    start = 0.0
    if "config.init_from" in options:
        start = read_loss(Path(options["config.init_from"]))
    last = step + int(os.environ.get("FAKE_STOP_AFTER", total))
    while step < total:
        if stopping or step == last:
            (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
            print(f"stopped after step {step}")
            sys.exit(0)
        time.sleep(SECONDS)
        step += 1
        record("step", step=step)
        replace(saved, json.dumps(step))
    loss = start + float(options["config.init_gain"])
    if os.environ.get("FAKE_NAN") == workdir.name:
        loss = None
    record_line = json.dumps({"step": total, "loss": loss})
    replace(workdir / "metrics.jsonl", record_line + "\n")
    checkpoint = workdir / "checkpoints" / str(total)
    checkpoint.mkdir(parents=True, exist_ok=True)


def read_loss(workdir):
    return json.loads((workdir / "metrics.jsonl").read_text())["loss"]


def evaluate(workdir, options):
    loss = read_loss(Path(options["checkpoint"]))
    row = {"evaluator": "linear_probe", "name": "encoder", "input": "mean", "task": "shape"}
    value = float("nan") if os.environ.get("FAKE_NAN") == workdir.name else 1 / (1 + loss)
    row |= {"metric": "top1", "value": value, "standard_error": 0.01, "n": 100}
    results = {"format": 2, "rows": [row], "tokens": {}, "stage": "", "manifests": {}}
    replace(workdir / "results.json", json.dumps(results))


def replace(path, text):
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


main()
