"""Results do not depend on the batch size, the workers, the devices or interruptions."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence

import pytest
import toy_evaluation

from configs.eval import world
from invnext_jax import atomic_file
from invnext_jax.evaluation import evaluate, feature_cache, head_training

EVALUATORS = ("linear_probe", "knn", "few_shot", "attentive_probe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    toy_evaluation.write_data(folder / "data", train=24, val=12)
    toy_evaluation.write_checkpoint(folder / "encoder.safetensors")
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 8)
    toy_evaluation.use_devices(monkeypatch, 1)


def make_config(folder):
    config = world.get_config()
    toy_evaluation.shrink(config, folder / "encoder.safetensors", folder / "data")
    config.update(evaluators=EVALUATORS, batch_size=8, tasks=("shape", "motion"))
    return config


@pytest.fixture(scope="module")
def expected(folder):
    with pytest.MonkeyPatch.context() as patch:
        toy_evaluation.use_devices(patch, 1)
        return measure(make_config(folder), folder / "expected")


def measure(config, workdir):
    """Returns all numbers and strings of an evaluation except durations, by their path."""
    results = evaluate.evaluate_checkpoint(config, workdir)
    return dict(flatten({name: results[name] for name in ("rows", "tokens", "splits", "notes")}))


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
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
        else:
            assert found[name] == value, name


def test_every_evaluator_has_rows(expected):
    assert {v for k, v in expected.items() if k.endswith("/evaluator")} == set(EVALUATORS)


def test_results_do_not_depend_on_the_batch_size(folder, expected, tmp_path):
    config = make_config(folder)
    config.batch_size = 5
    check_equal(measure(config, tmp_path), expected)


def test_results_do_not_depend_on_the_workers(folder, expected, tmp_path):
    config = make_config(folder)
    config.data.workers = 2
    check_equal(measure(config, tmp_path), expected)


def test_results_do_not_depend_on_the_devices(folder, expected, tmp_path, monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 8)
    check_equal(measure(make_config(folder), tmp_path), expected)


def test_evaluation_that_is_killed_repeatedly_has_the_same_results(
    folder, expected, tmp_path, monkeypatch
):
    """Each attempt is killed after it has written five files, before it renames the next one."""
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
            patch.setattr(atomic_file, "atomic_path", kill_after(5))
            found = measure(make_config(folder), tmp_path)
    assert attempts > 4
    assert found == expected
