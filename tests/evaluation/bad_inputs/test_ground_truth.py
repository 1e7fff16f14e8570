"""Damaged or missing ground truth ends in one sentence that explains what to change."""

import dataclasses
import functools
import importlib
import json
import shutil

import numpy as np
import pytest
import toy_evaluation
import truth_layouts
from toy_evaluation import check_error, set_options

from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate
from invnext_jax.evaluation.dense import truth_clips
from invnext_jax.evaluation.truth import epic_kitchens


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
        cut_file(path)


def cut_file(path):
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
        r"no valid entry for .*train.csv \(entry 1: .*'other.mp4' is not in the manifest, or is am",
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
        "siglip does not exist: check the path",
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


@pytest.mark.parametrize("evaluator", ["depth", "tracking"])
def test_damaged_clips_that_select_the_head_are_noted(evaluator, folder):
    """A grid of two learning rates holds out training clips."""
    config, *_ = toy_evaluation.make_configs(folder, (evaluator,))
    section = config[evaluator]
    section.held_out = 0.5
    held = truth_clips.hold_out_videos(np.arange(8), section.held_out, config.seed)[1]
    assert len(section.learning_rates) > 1 and len(held) > 1
    cut_file(folder / "data" / "gt" / "train" / f"{held[0]:06d}.npz")
    notes = evaluate.evaluate_checkpoint(config, folder / "results")["notes"]
    (note,) = [note for note in notes if "select the head" in note]
    assert note.startswith(f"{evaluator}, training clips that select the head: ")
    assert "cannot be read" in note
