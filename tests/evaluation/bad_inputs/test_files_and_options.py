"""Invalid files and options end in one sentence that explains what to change, and exit code 2."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_evaluation
from toy_evaluation import check_error, set_options

from configs.eval.tasks import attentive_probe
from invnext_jax.evaluation import evaluate, pretrained
from invnext_jax.evaluation.evaluators import anticipation


def make_config(folder):
    config = attentive_probe.get_config("tiny")
    toy_evaluation.shrink(config, folder / "encoder.safetensors", folder / "data")
    config.update(evaluators=("linear_probe",), tasks=("shape",))
    return config


def edit_labels(folder, split, label):
    """Replaces the label of the first task in all rows of a manifest."""
    path = folder / "data" / f"{split}.csv"
    header, *rows = path.read_text().splitlines()
    rows = [",".join([*row.split(",")[:2], label, *row.split(",")[3:]]) for row in rows]
    path.write_text("\n".join([header, *rows]) + "\n")


def keep_header(folder):
    path = folder / "data" / "val.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def damage_videos(folder):
    for path in (folder / "data").rglob("*.mp4"):
        path.write_bytes(path.read_bytes()[:50])


BAD_FILES = {
    "class that is not a number": (
        functools.partial(edit_labels, split="val", label="dog"),
        "val.csv, line 2: 'dog' .* is not an integer: number the classes",
    ),
    "videos without labels": (
        functools.partial(edit_labels, split="train", label=""),
        "label_shape has no labeled video in the training manifest",
    ),
    "one class": (
        functools.partial(edit_labels, split="train", label="3"),
        "label_shape has only one class in the training manifest",
    ),
    "empty split": (keep_header, "val.csv is empty: add a row for each video"),
    "unreadable videos": (
        damage_videos,
        "no readable video among the first 8 clips: check .* e.g. .*mp4",
    ),
    "workdir that cannot be written": (
        lambda folder: (folder / "results").write_text("a file"),
        "cannot write in --workdir=.*results",
    ),
}
BAD_OPTIONS = {
    "missing label": ({"tasks": ("size",)}, "train.csv has no column label_size"),
    "loss that is not finite": (
        {
            "evaluators": ("attentive_probe",),
            "attentive_probe.learning_rates": (1e38,),
            "attentive_probe.warmup_epochs": 0.0,
        },
        "the loss of every head is not finite: lower the learning rates",
    ),
    "wrong layout": ({"data.root": "{folder}"}, "copy/train.csv does not exist"),
    "checkpoint without an encoder": (
        {"checkpoint": "{folder}/head.safetensors"},
        r"head.safetensors has no encoder, only \['predictor'\]",
    ),
    "no checkpoint": ({"checkpoint": "{folder}/data"}, "data has no checkpoint"),
    "size that cannot be divided": (
        {"data.size": 20},
        "config.data.size=20 must be divisible by the encoder's patch of 8 pixels",
    ),
    "moving average of an export": (
        {"ema": True},
        "encoder.safetensors is not a run: remove the option ema",
    ),
    "held-out videos as a number": ({"held_out": 20.0}, "config.held_out=20.0 must be a fraction"),
    "misspelled sampling": (
        {"data.sampling": "Dense"},
        r"config.data.sampling='Dense' must be one of \('sparse', 'dense'\)",
    ),
    "stride of one number": ({"data.stride": (2,)}, "config.data.stride=.* must be two numbers"),
    "misspelled crop of one source": (
        {"data.by_source.world.crop": "random_resize"},
        "config.data.by_source.world.crop='random_resize' must be one of",
    ),
    "same manifest twice": (
        {"val_manifest": "train.csv"},
        "is also in config.train_manifest: use a manifest of held-out videos",
    ),
    "only baselines that do not run": (
        {"evaluators": ("pixel_baselines",), "controls": False},
        r"config.evaluators has only baselines \(pixel_baselines\), which do not run",
    ),
    "unknown evaluator": (
        {"evaluators": ("nearest",)},
        "config.evaluators has 'nearest', which is not one of linear_probe",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_end_in_one_sentence(name, folder, capsys):
    change, sentence = BAD_FILES[name]
    change(folder)
    check_error(folder, make_config(folder), sentence, capsys)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_end_in_one_sentence(name, folder, capsys):
    options, sentence = BAD_OPTIONS[name]
    config = make_config(folder)
    set_options(config, options, folder)
    check_error(folder, config, sentence, capsys)


@pytest.mark.parametrize("evaluator", ["linear_probe", "label_propagation"])
def test_features_that_are_not_finite_end_in_one_sentence(evaluator, folder, monkeypatch, capsys):
    break_parameters(monkeypatch)
    config, *_ = toy_evaluation.make_configs(folder, (evaluator,))
    check_error(folder, config, "not finite: .*check", capsys)


def test_checkpoint_without_a_predictor_is_a_note(folder, monkeypatch, capsys):
    config, *_ = toy_evaluation.make_configs(folder, ("anticipation",))
    monkeypatch.setattr(anticipation, "_train", None)  # the note comes before the training
    with pytest.raises(TypeError):
        evaluate.evaluate_checkpoint(config, folder / "results")
    assert "has no predictor, so anticipation uses only" in capsys.readouterr().out


def test_command_ends_with_one_sentence_and_no_traceback(folder):
    root = Path(__file__).parents[3]
    command = [sys.executable, str(root / "launch" / "evaluate.py"), f"--workdir={folder}/results"]
    command += [f"--config={root}/configs/eval/tasks/linear_probe.py:tiny", "--checkpoint=nowhere"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: nowhere does not exist")
    assert "Traceback" not in found.stderr


def break_parameters(monkeypatch):
    """Makes all parameters of the loaded encoder NaN."""
    load = pretrained.load_frozen

    def load_broken(*args, **kwargs):
        encoder = load(*args, **kwargs)
        params = jax.tree.map(lambda x: np.full_like(x, np.nan), encoder.params)
        return dataclasses.replace(encoder, params=params)

    monkeypatch.setattr(pretrained, "load_frozen", load_broken)


def test_damaged_files_of_the_workdir_are_computed_again(folder, capsys):
    config, workdir = make_config(folder), folder / "results"
    config.evaluators = ("linear_probe", "attentive_probe")
    before = evaluate.evaluate_checkpoint(config, workdir)
    files = [path for path in workdir.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.suffix for path in files} == {".json", ".npy", ".npz"}
    for path in files:
        path.write_bytes(path.read_bytes()[:-20])
    capsys.readouterr()
    after = evaluate.evaluate_checkpoint(config, workdir)
    assert "is damaged" in capsys.readouterr().out
    values = [[(row["task"], row["value"]) for row in x["rows"]] for x in (before, after)]
    assert values[0] == values[1]


def test_class_without_training_videos_is_a_note(folder):
    edit_labels(folder, "val", "99")
    found = evaluate.evaluate_checkpoint(make_config(folder), folder / "results")
    assert found["rows"][0]["value"] == 0
    assert any("99" in note for note in found["notes"])
