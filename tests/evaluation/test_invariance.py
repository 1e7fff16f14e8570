"""Results of all evaluators do not depend on batch size, workers, devices, processes or kills."""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import toy_evaluation
from processes import run_two_processes

from invnext_jax import atomic_file
from invnext_jax.evaluation import evaluate, head_training, video_scores
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.feature_store import feature_cache

QUICK = ("linear_probe", "knn", "few_shot", "label_propagation", "pixel_baselines", "box_baselines")
# Evaluators, and whether they read clips in each training step.
CASES = {
    "quick": (QUICK, False),
    "trained": (tuple(name for name in registry.EVALUATORS if name not in QUICK), False),
    "in the step": (toy_evaluation.IN_STEP, True),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("trained", "in the step")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    toy_evaluation.write_data(folder / "data", train=24, val=12)
    toy_evaluation.write_stage2(folder / "encoder.safetensors")
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 8)
    toy_evaluation.use_devices(monkeypatch, 1)


@pytest.fixture(scope="module", params=["quick", *SLOW])
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def expected(folder, case, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        toy_evaluation.use_devices(patch, 1)
        return measure(folder, case, tmp_path_factory.mktemp("expected"))


def measure(folder, case, workdir, **changes):
    """Returns all numbers and strings of an evaluation except durations, by their path."""
    for config in toy_evaluation.make_configs(folder, *case):
        config.update_from_flattened_dict(changes)
        evaluate.evaluate_checkpoint(config, workdir / str(config.controls))
    return read(workdir)


def read(workdir):
    """Reads the results, and the scores of all videos."""
    found = {}
    for path in sorted(workdir.glob("*/results.json")):
        results = json.loads(path.read_text())
        for row in results["rows"]:
            if "scores" not in row:  # medians
                continue
            scores = video_scores.read(path.parent / row["scores"]["file"], row["scores"]["row"])
            row["scores"] = [scores.index_b.tolist(), np.float64(scores.score_b).tolist()]
        found[path.parent.name] = {k: results[k] for k in ("rows", "tokens", "splits", "notes")}
    return dict(flatten(found))


def flatten(tree, name=""):
    if isinstance(tree, Mapping):
        children = [(key, value) for key, value in tree.items() if key != "seconds"]
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        children = enumerate(tree)
    else:
        yield name, tree
        return
    for key, child in children:
        yield from flatten(child, f"{name}/{key}")


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name
        else:
            assert found[name] == value, name


def test_every_evaluator_has_rows(expected, case):
    assert {v for k, v in expected.items() if k.endswith("/evaluator")} == set(case[0])


def test_results_do_not_depend_on_the_batch_size(folder, case, expected, tmp_path):
    check_equal(measure(folder, case, tmp_path, batch_size=5), expected)


def test_results_do_not_depend_on_the_workers(folder, case, expected, tmp_path):
    check_equal(measure(folder, case, tmp_path, **{"data.workers": 2}), expected)


def test_results_do_not_depend_on_the_devices(folder, case, expected, tmp_path, monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 8)
    check_equal(measure(folder, case, tmp_path), expected)


TWO_PROCESSES = """
import json, pathlib, sys
import toy_evaluation
from invnext_jax.evaluation import evaluate
from invnext_jax.evaluation.feature_store import feature_cache
from invnext_jax.multihost import distributed

distributed.initialize()
feature_cache.CHUNK_ROWS = 8
folder, workdir, case = sys.argv[1:]
for config in toy_evaluation.make_configs(pathlib.Path(folder), *json.loads(case)):
    evaluate.evaluate_checkpoint(config, f"{workdir}/{config.controls}")
"""


def test_results_do_not_depend_on_the_processes(folder, case, expected, tmp_path):
    root = Path(__file__).parents[2]
    processes = run_two_processes(
        TWO_PROCESSES,
        *(folder, tmp_path, json.dumps(case)),
        timeout=500,
        PYTHONPATH=f"{root}:{root}/tests/support",
    )
    for code, _, errors in processes:
        assert code == 0, errors
    check_equal(read(tmp_path), expected)


def test_evaluation_that_is_killed_repeatedly_has_the_same_results(
    folder, case, expected, tmp_path, monkeypatch
):
    """Each attempt is killed after it has written some files, before it renames the next one."""
    files = 5 if case[0] == QUICK else 12
    monkeypatch.setattr(
        head_training.SaveTimer, "save_if_due", lambda timer, *args: timer.save(*args)
    )
    write = atomic_file.atomic_path

    def kill_after(files):
        written = itertools.count()

        @contextlib.contextmanager
        def write_or_kill(path, *args, **kwargs):
            with write(path, *args, **kwargs) as part:
                yield part
                if next(written) == files:
                    raise KeyboardInterrupt

        return write_or_kill

    found, attempts = None, 0
    while found is None:
        attempts += 1
        assert attempts < 50
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(atomic_file, "atomic_path", kill_after(files))
            found = measure(folder, case, tmp_path)
    assert attempts > 4
    assert found == expected
