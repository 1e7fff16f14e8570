"""Invalid inputs raise an error with one sentence that explains what to change."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
import toy_evaluation

from configs.eval import attentive_probe
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, pretrained


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a data set in `data` and two checkpoints."""
    folder = tmp_path_factory.mktemp("original")
    toy_evaluation.write_data(folder / "data", train=8, val=8)
    toy_evaluation.write_checkpoint(folder / "encoder.safetensors")
    toy_evaluation.write_checkpoint(folder / "head.safetensors", parts=["predictor"])
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


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
        "val.csv, line 2: .*dog",
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
    "unreadable videos": (damage_videos, "no readable video among the first 8 clips, e.g. .*mp4"),
    "workdir that cannot be written": (
        lambda folder: (folder / "results").write_text("a file"),
        "cannot write in --workdir=.*results",
    ),
}
BAD_OPTIONS = {
    "missing label": ({"tasks": ("size",)}, "train.csv has no column label_size: add it"),
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
    "same manifest twice": (
        {"val_manifest": "train.csv"},
        "is also in config.train_manifest: use a manifest of held-out videos",
    ),
    "unknown evaluator": (
        {"evaluators": ("nearest",)},
        "config.evaluators has 'nearest', which is not one of linear_probe",
    ),
}


def check_error(folder, config, sentence):
    """Checks the error, which is one line; a table of reasons may follow."""
    with pytest.raises(UserError, match=sentence) as error:
        evaluate.evaluate_checkpoint(config, folder / "results")
    first, *reasons = str(error.value).split("\n")
    assert len(first) < 400 and all(reason.startswith("  ") for reason in reasons)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_end_in_one_sentence(name, folder):
    change, sentence = BAD_FILES[name]
    change(folder)
    check_error(folder, make_config(folder), sentence)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_end_in_one_sentence(name, folder):
    options, sentence = BAD_OPTIONS[name]
    config = make_config(folder)
    for option, value in options.items():
        value = value.format(folder=folder) if isinstance(value, str) else value
        config.update_from_flattened_dict({option: value})
    check_error(folder, config, sentence)


def test_features_that_are_not_finite_end_in_one_sentence(folder, monkeypatch):
    break_parameters(monkeypatch)
    check_error(folder, make_config(folder), "not finite")


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
