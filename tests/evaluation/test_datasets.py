"""The commands of docs/evaluation/datasets.md run on toy data sets in the described layouts."""

import functools
import importlib
import re
import shlex
from pathlib import Path

import ml_collections
import pytest
import toy_evaluation
import truth_layouts

from invnext_jax.dataset_prep import indexing, waymo
from invnext_jax.evaluation import evaluate
from invnext_jax.evaluation.truth import epic_kitchens
from invnext_jax.video_lists import lists

PAGE = (Path(__file__).parents[2] / "docs/evaluation/datasets.md").read_text()
PAIRS = "Pairs of videos and captions"


def write_ssv2(root):
    truth_layouts.write_ssv2(root)
    truth_layouts.write_choices(root, [f"{1008 + i}.webm" for i in range(4)])


def write_kitti(root):
    for start, split in ((0, "train"), (2, "val")):
        truth_layouts.write_kitti(root, 2, split=split, start=start)


def write_epic(root):
    classes = [(verb, noun) for verb in (0, 3) for noun in (5, 7)]
    rows = {
        "train": [("P01_01", 1.5, 2.0, *pair) for pair in classes * 2],
        "validation": [("P01_01", 1.6, 2.0, *pair) for pair in classes],
    }
    truth_layouts.write_epic(root / "annotations", rows)
    truth_layouts.write_videos(root / "videos", ["P01/videos/P01_01.MP4"])


# For each section: the folder below /data, and the function that writes the data set.
WRITERS = {
    "Kinetics-400": ("k400", truth_layouts.write_kinetics),
    "Something-Something v2": ("ssv2", write_ssv2),
    "COIN": ("coin", truth_layouts.write_coin),
    "ScanNet": ("scannet", truth_layouts.write_scannet_splits),
    "KITTI": ("kitti", write_kitti),
    "Waymo Open": ("waymo", truth_layouts.write_waymo),
    "EPIC-KITCHENS-100": ("ek100", write_epic),
    PAIRS: ("pairs", lambda root: truth_layouts.write_captioned(root, "train", 6)),
    "MSR-VTT": ("msrvtt", lambda root: truth_layouts.write_captioned(root, "test", 4, first=6)),
    "DAVIS 2017": ("davis", truth_layouts.write_davis),
    "JHMDB": ("jhmdb", truth_layouts.write_jhmdb),
}
# For each config: the metrics, tasks and numbers of videos of its rows.
EXPECTED = {
    **{f"{name}_attentive": {("top1", "class", 4)} for name in ("k400", "ssv2", "coin")},
    **{f"{name}_linear": {("top1", "class", 4)} for name in ("k400", "ssv2")},
    "k400_zero_shot": {("top1", "class", 4)},
    "ssv2_multiple_choice": {("top1", "choices", 4)},
    "msrvtt_retrieval": {
        *((f"recall_at_{k}", "text to video", 4) for k in (1, 5, 10)),
        *((f"recall_at_{k}", "video to text", 4) for k in (1, 5, 10)),
        *(("median_rank", "text to video", 4), ("median_rank", "video to text", 4)),
    },
    **{
        f"{name.lower()}_depth": {
            (metric, f"{name} depth", 2)
            for metric in ("abs_rel", "delta1", "aligned_abs_rel", "aligned_delta1")
        }
        for name in ("ScanNet", "KITTI")
    },
    "waymo_tracking": {("mean_iou", "boxes", 2)},
    "ek100_anticipation": {("class_mean_recall@5", t, 4) for t in ("verb", "noun", "action")},
    "davis_propagation": {
        (metric, "DAVIS masks", 2) for metric in ("j_and_f", "region_j", "boundary_f")
    },
    "jhmdb_propagation": {(f"pck_{share}", "JHMDB points", 1) for share in (0.1, 0.2)},
}
# The real configs with small models and short trainings.
TOY = {
    "batch_size": 8,
    "inverse_penalties": (1.0,),
    "data.size": toy_evaluation.SIZE,
    "data.short_side": toy_evaluation.SIZE,
    "data.frames": toy_evaluation.FRAMES,
    "data.workers": 0,
    "label_propagation.height": 16,
    "label_propagation.width": 32,
    "text.encoder": "",
    "text.train_text": True,
    "text.pool_width": 8,
    "text.pool_heads": 2,
    **{f"{name}.width": 8 for name in ("attentive_probe", "depth", "tracking")},
    "tracking.query_width": 8,
    "anticipation.blocks": 1,
    "anticipation.learning_rates": (1e-3,),
    "anticipation.weight_decays": (1e-4,),
    "anticipation.held_out": 0.5,
    **{
        f"{section}.{name}": value
        for section in ("attentive_probe", "anticipation", "depth", "tracking", "text")
        for name, value in {
            "heads": 2,
            "batch_size": 4,
            "epochs": 2.0,
            "warmup_epochs": 0.5,
            "rand_augment.operations": 1,  # compiles faster
        }.items()
    },
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 1)


def read_commands(title):
    """Returns the names of scripts, and their flags by name, of a section."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0].replace("\\\n", " ")
    commands = re.findall(r"^python launch/(\w+)\.py (.*)$", section, re.MULTILINE)
    return [(script, *parse(shlex.split(arguments))) for script, arguments in commands]


def parse(arguments):
    """Returns the positional arguments and the flags by name."""
    flags = dict(a.removeprefix("--").split("=", 1) for a in arguments if a.startswith("--"))
    return [a for a in arguments if not a.startswith("--")], flags


def run_index(arguments, flags):
    assert arguments[0] == "index"
    options = indexing.IndexOptions(workers=1, progress=False)
    list_options = lists.ListOptions(videos=flags["videos"])
    summary = indexing.build_manifest(arguments[1], flags["out"], list_options, options)
    assert summary.quarantined == 0 and summary.clean in (8, 6, 4)


def run_waymo(arguments, flags):
    assert not arguments
    summary = waymo.convert(flags["folder"], flags["out"], progress=False)
    assert summary.segments == 2 and not summary.skipped


def run_epic(arguments, flags):
    assert not arguments
    epic_kitchens.write_manifests(flags["annotations"], flags["videos"], flags["out"])


def flatten(config, prefix=""):
    """Returns the dotted names of all options."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def run_evaluation(arguments, flags, checkpoint, folder):
    assert not arguments
    module = flags.pop("config").removesuffix(".py").replace("/", ".")
    config = importlib.import_module(module).get_config()
    assert flags.pop("checkpoint") == "FOLDER"
    workdir = folder / flags.pop("workdir")
    overrides = [name.removeprefix("config.") for name in flags]
    config.update_from_flattened_dict(flags, strip_prefix="config.")
    names = set(flatten(config))
    config.update_from_flattened_dict({k: v for k, v in TOY.items() if k in names})
    config.checkpoint = str(checkpoint)
    rows = evaluate.evaluate_checkpoint(config, workdir, overrides)["rows"]
    for row in rows:
        has_key = row["evaluator"] == "anticipation" or not config.val_manifest
        assert ("videos_key" in row) == has_key
    found = {(row["metric"], row["task"], row["n"]) for row in rows}
    assert found == EXPECTED[module.rpartition(".")[2]]


RUN = {
    "prepare_data": run_index,
    "convert_waymo": run_waymo,
    "convert_epic_kitchens": run_epic,
}


def run_section(title, folder, checkpoint):
    name, write = WRITERS[title]
    write(folder / "data" / name)
    for script, arguments, flags in read_commands(title):
        arguments = [a.replace("/data/", f"{folder}/data/") for a in arguments]
        flags = {k: v.replace("/data/", f"{folder}/data/") for k, v in flags.items()}
        run = RUN.get(script) or functools.partial(
            run_evaluation, checkpoint=checkpoint, folder=folder
        )
        run(arguments, flags)


def test_every_section_and_every_config_of_a_data_set_has_a_test():
    titles = set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
    assert titles == WRITERS.keys()
    commands = [flags for title in titles for _, _, flags in read_commands(title)]
    configs = {Path(flags["config"]).stem for flags in commands if "config" in flags}
    assert configs == EXPECTED.keys()
    folder = Path(__file__).parents[2] / "configs" / "eval"
    paths = folder.glob("*.py")
    documented = {path.stem for path in paths if "docs/evaluation/datasets.md" in path.read_text()}
    assert documented == configs


@pytest.mark.parametrize("title", [title for title in WRITERS if title != PAIRS])
def test_documented_commands_run_on_the_documented_layout(title, tmp_path):
    checkpoint = toy_evaluation.write_checkpoint(tmp_path / "encoder.safetensors")
    if any("/data/pairs" in str(flags) for _, _, flags in read_commands(title)):
        run_section(PAIRS, tmp_path, checkpoint)
    run_section(title, tmp_path, checkpoint)
