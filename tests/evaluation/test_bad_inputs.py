"""Invalid inputs end in one sentence that explains what to change, and exit code 2."""

import dataclasses
import functools
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_evaluation
import truth_layouts

from configs.eval.tasks import attentive_probe
from invnext_jax import errors
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, pretrained
from invnext_jax.evaluation.evaluators import anticipation
from invnext_jax.evaluation.truth import epic_kitchens


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a data set in `data` and three checkpoints."""
    folder = tmp_path_factory.mktemp("original")
    toy_evaluation.write_data(folder / "data", train=8, val=8)
    toy_evaluation.write_checkpoint(folder / "encoder.safetensors")
    toy_evaluation.write_stage2(folder / "stage2.safetensors")
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
    "same manifest twice": (
        {"val_manifest": "train.csv"},
        "is also in config.train_manifest: use a manifest of held-out videos",
    ),
    "unknown evaluator": (
        {"evaluators": ("nearest",)},
        "config.evaluators has 'nearest', which is not one of linear_probe",
    ),
}


def check_error(folder, config, sentence, capsys):
    """Checks the error, which is one line; a table of reasons may follow."""
    with pytest.raises(SystemExit) as ended, errors.exit_on_user_error():
        evaluate.evaluate_checkpoint(config, folder / "results")
    assert ended.value.code == 2
    _, _, message = capsys.readouterr().err.partition("error: ")
    first, *reasons = message.rstrip("\n").split("\n")
    assert re.search(sentence, first)
    first = first.replace(str(folder), "")
    assert len(first) < 400 and all(reason.startswith("  ") for reason in reasons)


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


def set_options(config, options, folder):
    for option, value in options.items():
        value = value.format(folder=folder) if isinstance(value, str) else value
        config.update_from_flattened_dict({option: value})


def nothing(folder):
    del folder


def write_videos_only(folder):
    """Writes manifests in `plain` without labels, captions and other ground truth."""
    for split in ("train", "val"):
        shutil.copytree(folder / "data" / split, folder / "plain" / "videos" / split)
        rows = (folder / "data" / f"{split}.csv").read_text().splitlines()[1:]
        rows = [f"videos/{row.split(',')[0]},x" for row in rows]
        (folder / "plain" / f"{split}.csv").write_text("\n".join(["path,source", *rows]) + "\n")


def write_json(folder, video, **fields):
    write_videos_only(folder)
    path = folder / "plain" / "texts.json"
    path.write_text(json.dumps([{"video": video, **fields}]))


def damage_truth(folder):
    cut_files(folder / "data" / "gt", "npz")


def cut_files(folder, kind):
    for path in folder.rglob(f"*.{kind}"):
        path.write_bytes(path.read_bytes()[:60])


def write_scannet(folder, change=nothing):
    truth_layouts.write_scannet_splits(folder / "scannet", spec=SPEC)
    change(folder / "scannet")


def write_boxes(folder, change=nothing):
    for split in ("train", "val"):
        truth_layouts.write_boxes(folder / "boxes" / split, spec=SPEC, as_folder=True)
    change(folder / "boxes" / "val")


def write_davis(folder, change):
    truth_layouts.write_davis(folder / "davis", spec=SPEC)
    change(folder / "davis")


def remove_images(folder):
    for path in folder.rglob("*.png"):
        path.unlink()


SPEC = dataclasses.replace(truth_layouts.SPEC, frames=6)
PLAIN = {
    "train_manifest": "{folder}/plain/train.csv",
    "val_manifest": "{folder}/plain/val.csv",
}
TEXT = {"text.train_captions": "{folder}/plain/texts.json", **PLAIN}
SCANNET = {"depth.data": "scannet", "depth.root": "{folder}/scannet", "depth.stride": 2}
BOXES = {
    "tracking.data": "boxes",
    "tracking.root": "{folder}/boxes",
    "tracking.targets": ("boxes",),
    "tracking.fps": 0.0,
}
DAVIS = {"label_propagation.data": "davis", "label_propagation.root": "{folder}/davis"}
# For each class of errors: the config, what is written, the options, and the error.
BAD_TRUTH = {
    "no captions": ("zero_shot", write_videos_only, PLAIN, "has no captions: set config.text"),
    "captions of other videos": (
        "zero_shot",
        functools.partial(write_json, video="other.mp4", caption="a disc"),
        TEXT,
        r"no valid entry for .*train.csv \(entry 1: the video 'other.mp4' is not in the manifest\)",
    ),
    "choices without the correct one": (
        "zero_shot",
        functools.partial(write_json, video="val/000000.mp4", caption=["a", "b"], answer=2),
        {"text.choices": "{folder}/plain/texts.json"},
        "the answer 2 is not one of 2 candidates.*the position of the correct one",
    ),
    "no text tower": (
        "zero_shot",
        nothing,
        {"text.encoder": "{folder}/siglip"},
        "there is no file or folder .*siglip: check the path",
    ),
    "truncated depth": (
        "depth",
        functools.partial(write_scannet, change=lambda root: cut_files(root, "png")),
        SCANNET,
        "ScanNet: none of 3 clips can be read .*png cannot be decoded.*restore the files",
    ),
    "truncated ground truth of a world": (
        "depth",
        damage_truth,
        {},
        "world: none of .* clips can be read .*npz cannot be read .*restore the files",
    ),
    "videos without ground truth": (
        "depth",
        write_videos_only,
        PLAIN,
        "has no ground truth in .*gt.*: use a world that launch/make_world.py wrote",
    ),
    "folder of another data set": (
        "depth",
        nothing,
        {**SCANNET, "depth.root": "{folder}/data"},
        "the list .*data/train.txt cannot be read .*check that the option root",
    ),
    "folder without frames": (
        "depth",
        functools.partial(write_scannet, change=remove_images),
        SCANNET,
        "color has no numbered images: check the layout",
    ),
    "damaged boxes": (
        "tracking",
        functools.partial(write_boxes, change=lambda root: cut_files(root, "jsonl")),
        BOXES,
        "tracks.jsonl has no tracks .line 1: .*write one JSON object for each video",
    ),
    "boxes without videos": (
        "tracking",
        functools.partial(write_boxes, change=remove_images),
        BOXES,
        "boxes: none of . clips can be read .*has no numbered images",
    ),
    "too many frames": (
        "tracking",
        write_boxes,
        {**BOXES, "data.frames": 32},
        "no window of .* satisfies the rules .32 frames, .*lower config.data.frames",
    ),
    "no masks": (
        "label_propagation",
        functools.partial(write_davis, change=lambda root: shutil.rmtree(root / "Annotations")),
        DAVIS,
        "Annotations/480p/sequence-0 does not exist: extract the annotations",
    ),
    "masks that are no images": (
        "label_propagation",
        functools.partial(write_davis, change=lambda root: cut_files(root / "Annotations", "png")),
        DAVIS,
        "DAVIS: none of 2 clips can be read .*png cannot be decoded.*restore",
    ),
    "context without a later slot": (
        "anticipation",
        nothing,
        {"anticipation.context_frames": 2, "tasks": ("shape",)},
        "the time grid has 2 frames.*context_frames=2, .*lower them, or raise grid_frames",
    ),
    "labels of other tasks": (
        "anticipation",
        nothing,
        {"anticipation.context_frames": 1},
        "train.csv has no column label_(action|noun|verb)",
    ),
}


@pytest.mark.parametrize("name", BAD_TRUTH)
def test_bad_ground_truth_ends_in_one_sentence(name, folder, capsys):
    module, write, options, sentence = BAD_TRUTH[name]
    write(folder)
    config = importlib.import_module(f"configs.eval.tasks.{module}").get_config("tiny")
    manifests = {f"{split}_manifest": f"{folder}/data/{split}.csv" for split in ("train", "val")}
    config.update(controls=False, checkpoint=str(folder / "stage2.safetensors"), **manifests)
    config.data.workers = 0
    set_options(config, options, folder)
    check_error(folder, config, sentence, capsys)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda text: text.replace("verb_class", "verb"), "no column 'verb_class': use EPIC_100"),
        (lambda text: text.splitlines()[0] + "\n", "has no valid action .it is empty.: download"),
        (lambda text: text.replace("00:00:", "x"), "no valid action .line 4: .*download"),
    ],
)
def test_bad_annotations_of_epic_kitchens_end_in_one_sentence(edit, sentence, tmp_path):
    path = truth_layouts.write_epic(tmp_path) / "EPIC_100_train.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=sentence):
        epic_kitchens.write_manifests(tmp_path, tmp_path / "videos", tmp_path / "out")


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
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "launch" / "evaluate.py"), f"--workdir={folder}/results"]
    command += [f"--config={root}/configs/eval/tasks/linear_probe.py:tiny", "--checkpoint=nowhere"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: nowhere has no checkpoint")
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
