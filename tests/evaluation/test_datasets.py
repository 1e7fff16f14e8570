"""The commands of docs/datasets.md run on toy data sets in the layouts that the page describes."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import toy_evaluation
import truth_layouts

from invnext_jax.dataset_prep import indexing
from invnext_jax.evaluation import evaluate
from invnext_jax.video_lists import lists

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
WRITERS = {
    "Kinetics-400": truth_layouts.write_kinetics,
    "Something-Something v2": truth_layouts.write_ssv2,
    "COIN": truth_layouts.write_coin,
}
# Sections whose layout another test writes: the file in this folder and the test.
TESTED_ELSEWHERE = {
    "EPIC-KITCHENS-100": (
        "evaluators/test_anticipation.py",
        "test_epic_kitchens_with_the_base_config",
    ),
}
# The real configs with small models and short trainings.
TOY = {
    "batch_size": 8,
    "inverse_penalties": (1.0,),
    "data.size": toy_evaluation.SIZE,
    "data.short_side": toy_evaluation.SIZE,
    "data.frames": toy_evaluation.FRAMES,
    "data.workers": 0,
    "attentive_probe.heads": 2,
    "attentive_probe.width": 8,
    "attentive_probe.batch_size": 4,
    "attentive_probe.epochs": 2.0,
    "attentive_probe.warmup_epochs": 1.0,
    "attentive_probe.rand_augment.operations": 1,  # compiles faster
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 1)


def read_commands(title):
    """Returns the scripts of a section with their arguments, and the folder of the data set."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    commands = re.findall(r"^python launch/(\w+)\.py (.*)$", section, re.MULTILINE)
    (folder,) = set(re.findall(r"/data/\w+", section))
    return [(script, shlex.split(arguments)) for script, arguments in commands], folder


def parse(arguments):
    """Returns the flags by name."""
    parser = argparse.ArgumentParser()
    for name in ("videos", "out", "config", "checkpoint", "config.data.root", "workdir"):
        parser.add_argument(f"--{name}", default="")
    return vars(parser.parse_args(arguments))


def run_index(arguments):
    assert arguments[0] == "index"
    found = parse(arguments[2:])
    options = indexing.IndexOptions(workers=1, progress=False)
    list_options = lists.ListOptions(videos=found["videos"])
    return indexing.build_manifest(arguments[1], found["out"], list_options, options)


def run_evaluation(arguments, checkpoint, workdir):
    found = parse(arguments)
    module = found["config"].removesuffix(".py").replace("/", ".")
    config = importlib.import_module(module).get_config()
    for name, value in TOY.items():
        if name.split(".")[0] in config:
            config.update_from_flattened_dict({name: value})
    config.update(checkpoint=str(checkpoint))
    config.data.root = found["config.data.root"]
    return evaluate.evaluate_checkpoint(config, workdir / found["workdir"])


def test_every_section_has_a_test():
    titles = set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
    assert titles == WRITERS.keys() | TESTED_ELSEWHERE.keys()
    for file, test in TESTED_ELSEWHERE.values():
        assert f"def {test}(" in (Path(__file__).parent / file).read_text()


@pytest.mark.parametrize("title", WRITERS)
def test_documented_commands_run_on_the_documented_layout(title, tmp_path):
    commands, folder = read_commands(title)
    root = tmp_path / "data"
    WRITERS[title](root)
    checkpoint = toy_evaluation.write_checkpoint(tmp_path / "encoder.safetensors")
    evaluated = 0
    for script, arguments in commands:
        arguments = [argument.replace(folder, str(root)) for argument in arguments]
        if script == "prepare_data":
            summary = run_index(arguments)
            assert summary.quarantined == 0 and summary.clean in (8, 4)
        else:
            rows = run_evaluation(arguments, checkpoint, tmp_path)["rows"]
            assert {(row["task"], row["n"], row["classes"]) for row in rows} == {("class", 4, 2)}
            evaluated += 1
    assert evaluated
