"""The report is self-contained, joins results, and refuses other folders."""

import copy
import json
import re
import shutil

import flax.linen as nn
import jax
import ml_collections
import pytest

from configs import stage1 as stage1_config
from invnext_jax.checkpointing import frozen_hashes, run_metadata, run_record
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained, results_file, tables
from invnext_jax.evaluation.pages import report, run_clips
from invnext_jax.evaluation.pages.reported_run import ReportedRun, name_folders
from invnext_jax.stages.registry import STAGES
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec

stage1 = STAGES["stage1"]


def make_row(name, what, task, top1):
    common = {"videos": 100, "classes": 8, "standard_error": 0.03, "train_top1": 1.0, "n": 100}
    metric = {"evaluator": "linear_probe", "metric": "top1", "value": top1}
    return {"name": name, "input": what, "task": task, "top1": top1, **common, **metric}


def make_probe(stage, top1, *, controls):
    rows = [make_row("encoder", "mean", "shape", top1)]
    if controls:
        rows += [
            make_row("random", "mean", "shape", 0.25),
            make_row("supervised", "end to end", "shape", 0.5),
            make_row("first_frame", "pixels", "shape", 0.2),
        ]
    statistics = {
        **{"position_share": 0.2, "effective_rank": 9.0, "effective_rank_within": 8.0},
        **{"feature_std": 1.0, "width": 64},
    }
    config = {"supervised": {"steps": 150 * controls}, "val_manifest": "val.csv"}
    return {
        "format": results_file.FORMAT,
        "stage": stage,
        "tasks": ["shape"],
        "rows": rows,
        "tokens": {"encoder": statistics},
        "run": {"config": config},
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes the files of a Stage 1 run and its evaluation; parameters are generated on loading."""
    spec = WorldSpec(size=32, frames=2, split="val")
    manifest = write_world(spec, tmp_path / "world", 2, progress=False)
    config = stage1_config.get_config("tiny")
    config.encoder.update(width=16, depth=2, heads=2, mlp_width=32, pool_width=16, frames=2)
    config.predictor.update(width=16, depth=1, heads=2, mlp_width=16)
    config.decoder.update(depth=1, width=32)
    config.data.update(frames=2, manifest=str(manifest), workers=0)
    record = {
        "config": run_metadata.config_to_json(config),
        "step": 2,
        "git": "a" * 40,
        "versions": {},
        "manifest_sha256": manifest_lib.hash_manifests(str(manifest)),
        "frozen_sha256": frozen_hashes.hash_groups(stage1.init_frozen(config, None)),
    }
    (tmp_path / "s1" / "checkpoints").mkdir(parents=True)
    lines = [{"step": i, "loss": 1.0 / i, "clips_per_second": 5.0} for i in (1, 2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "s1" / "metrics.jsonl").write_text(text)
    probe = make_probe("stage1", 0.9, controls=True)
    probe["run"]["config"]["val_manifest"] = str(manifest)
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "results.json").write_text(json.dumps(probe))

    def load(_):
        model = stage1.make_model(config)
        init = jax.jit(lambda key: stage1.init_params(config, model, key))
        return nn.meta.unbox(init(jax.random.key(0))), ml_collections.ConfigDict(record["config"])

    monkeypatch.setattr(pretrained, "load_params", load)
    monkeypatch.setattr(run_record, "read_run_record", lambda _: record)
    return tmp_path


def test_page_is_self_contained(folder):
    out = report.write_report([folder / "s1", folder / "p1"], folder / "out" / "report.html", 2)
    page = out.read_text()
    assert set(re.findall(r'src="([^"]{10})', page)) == {"data:image"}
    assert not re.search(r"<script|<link|@import|url\(\s*['\"]?http", page)
    assert page.count('class="clip"') == 2
    titles = ("Input", "mask", "reconstruction", "another clip&#39;s latents", "Features, Stage 1")
    for text in (*titles, "Random initialization", "90.0", "a" * 10, "Loss"):
        assert text in page, text
    captions = (folder / "world" / "val.captions.jsonl").read_text().splitlines()
    assert json.loads(captions[1])["caption"] in page


@pytest.mark.parametrize("digest", [None, "a" * 64])
def test_weights_that_are_not_those_of_the_teacher_draw_no_masks(digest, folder):
    """A forged config can name any weights of this machine, but not their hash."""
    record = run_record.read_run_record(folder / "s1")
    run = ReportedRun(folder / "s1", {**record, "frozen_sha256": {"teacher": digest}}, [])
    found = run_clips.show_clips([run], [], 1)
    assert "is not the image teacher with which the run was trained" in found["notes"][0]
    assert not any("mask" in strip["title"] for strip in found["clips"][0]["strips"])


def test_why_weights_cannot_be_read_is_not_shown(folder):
    record = run_record.read_run_record(folder / "s1")
    record["config"]["teacher"]["weights"] = str(folder / "private.safetensors")
    for is_there in (False, True):
        if is_there:
            (folder / "private.safetensors").write_bytes(b"x")
        (note,) = run_clips.show_clips([ReportedRun(folder / "s1", record, [])], [], 1)["notes"][:1]
        assert note.endswith(
            "private.safetensors cannot be read, or is not the image teacher with which the run "
            "was trained."
        )


def test_strips_name_the_run_if_several_have_the_same_stage(folder):
    (folder / "s2").mkdir()
    shutil.copytree(folder / "s1", folder / "s2" / "s1")
    for pair, names in (
        (["s1", "s2/s1"], [str(folder / "s1"), str(folder / "s2" / "s1")]),
        (["s1", "s3"], ["s1", "s3"]),
    ):
        if pair[1] == "s3":
            shutil.move(folder / "s2" / "s1", folder / "s3")
        runs = [ReportedRun(folder / n, run_record.read_run_record(n), []) for n in pair]
        strips = run_clips.show_clips(runs, [], 1)["clips"][0]["strips"]
        titles = [strip["title"] for strip in strips]
        assert len(set(titles)) == len(titles)
        for name in names:
            assert f"Stage 1 ({name}): mask" in titles and f"Features, Stage 1 ({name})" in titles
    page = report.write_report([folder / "s1", folder / "s3"], folder / "o.html", 0).read_text()
    assert ">s1</span>" in page and ">s3</span>" in page


def test_folders_with_equal_names_are_named_by_their_paths(tmp_path):
    assert name_folders(["x/a", "y/b/"]) == ["a", "b"]
    assert name_folders(["x/a", "y/a", "y/b"]) == ["x/a", "y/a", "b"]
    assert name_folders(["x/a", "x/a"]) == ["a", "a"]


def test_facts_are_those_of_the_clips_and_modules_of_the_run(folder):
    record = run_record.read_run_record(folder / "s1")
    facts = report.describe_facts(ReportedRun(folder / "s1", record, []))
    assert facts["predictor"] == "1 modernbert layers"
    config = copy.deepcopy(record["config"])
    config["encoder"].update(size=64, patch=16)
    config["data"].update(size=96)
    config["loss"].update(pixels=0.0)
    facts = report.describe_facts(ReportedRun(folder / "s1", {**record, "config": config}, []))
    assert facts["clips"] == "2 frames of 96 px, 6 x 6 patches of 16 px"
    assert "predictor" not in facts


def test_a_run_without_evaluation_has_a_page_without_frames(folder):
    for _ in range(2):  # replaces the earlier page
        out = report.write_report([folder / "s1"], folder / "report.html", clips=0)
    assert "Example clips" not in out.read_text()


def test_results_join_into_one_table_in_the_order_of_information():
    probes = [
        make_probe("stage1", 0.9, controls=False),
        make_probe("stage2", 0.8, controls=True),
    ]
    (table,) = tables.join_results(probes)["tables"]
    names = [row["name"] for row in table["rows"]]
    assert names == [
        *("chance", "first frame", "random initialization", "Stage 1", "Stage 2", "supervised")
    ]
    gain = table["rows"][3]["cells"]["shape"]["gain"]
    assert gain["points"] == pytest.approx(65)
    assert gain["errors"] == pytest.approx(0.65 / (0.03 * 2**0.5))
    assert "150 steps" in table["rows"][-1]["note"]
    assert table["rows"][0]["cells"]["shape"]["value"] == 1 / 8
    heading, *lines = tables.format_joined(probes).splitlines()
    assert heading.split() == ["top-1,", "%", "shape"]
    assert [line.split("  ")[0].split(",")[0] for line in lines] == names


def test_two_probes_of_one_stage_are_numbered():
    probes = [make_probe("stage1", 0.9, controls=False), make_probe("stage1", 0.8, controls=False)]
    names = [row["name"] for row in tables.join_results(probes)["tables"][0]["rows"]]
    assert names == ["chance", "Stage 1 (1)", "Stage 1 (2)"]


def test_names_of_folders_forge_no_lines_and_fill_no_memory():
    probes = [
        {**make_probe("stage1", 0.5, controls=True), "workdir": f"{name}\nWrote x"}
        for name in ("a", "b" * 5000)
    ]
    text = tables.format_joined(probes)
    assert r"Stage 1 (a\nWrote x), mean" in text
    assert not any(line.startswith("Wrote") for line in text.splitlines())
    assert sum(len(line) > 300 for line in text.splitlines()) == 1


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="specify the workdirs"):
        report.write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match="is neither a run nor an evaluation"):
        report.write_report([tmp_path], tmp_path / "report.html")


def test_joined_manifests_are_listed_and_missing_captions_noted(folder):
    manifest = folder / "world" / "val.csv"
    results = folder / "p1" / "results.json"
    probe = json.loads(results.read_text())
    copy = manifest.with_name("copy.csv")
    copy.write_bytes(manifest.read_bytes())
    probe["run"]["config"]["val_manifest"] = f"{manifest},{copy}"
    found_runs = [ReportedRun(folder / "s1", run_record.read_run_record(folder / "s1"), [])]
    found = run_clips.show_clips(found_runs, [probe], 2)  # as many as above
    assert found["manifest"] == "val.csv, copy.csv"
    assert any(note.startswith("No captions") for note in found["notes"])


@pytest.mark.parametrize("text", ["", "[1]\n", "{\n", '{"a": 1}\n'])
def test_damaged_captions_are_skipped(text, tmp_path, caplog):
    (tmp_path / "val.captions.jsonl").write_text(text)
    assert run_clips._name_clips(f"{tmp_path}/val.csv", {0: "a.mp4"}) is None
    assert "val.captions.jsonl is damaged and skipped" in caplog.text


def test_only_the_captions_of_the_clips_are_read(tmp_path, monkeypatch):
    path = tmp_path / "val.captions.jsonl"
    lines = [f'{{"video": "{name}.mp4", "caption": "{name}"}}\n' for name in "ac"]
    path.write_text("{\n".join(lines) + "x" * 1000)
    monkeypatch.setattr(run_clips, "MAX_LINE_BYTES", 100)
    paths = {2: "v/c.mp4", 0: "v/a.mp4"}
    assert run_clips._name_clips(f"{tmp_path}/val.csv", paths) == ["Clip 2: c", "Clip 0: a"]
    assert run_clips._name_clips(f"{tmp_path}/val.csv", {3: "v/x.mp4"}) is None
    assert run_clips._name_clips(f"{tmp_path}/val.csv", {2: "v/a.mp4"}) is None  # another video
    monkeypatch.setattr(run_clips, "MAX_CAPTIONS_BYTES", 100)
    assert run_clips._name_clips(f"{tmp_path}/val.csv", paths) is None


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, " " * 2**20 + "{}", '{"epochs": "a"}'])
def test_damaged_recipes_are_skipped(text, tmp_path):
    (tmp_path / "recipe.json").write_text(text)
    assert report._read_epochs(tmp_path) == ""
    (tmp_path / "recipe.json").write_text('{"epochs": 2.5, "videos": 4000}')
    assert report._read_epochs(tmp_path) == "2.5 of 4,000 videos"


def test_gains_of_values_without_a_bar_are_on_their_own_line(tmp_path):
    probe = make_probe("stage1", 0.4, controls=True)
    for row in probe["rows"]:
        row.update(metric="abs_rel", evaluator="depth", task="depth")
    (tmp_path / "results.json").write_text(json.dumps(probe))
    page = report.write_report([tmp_path], tmp_path / "report.html", 0).read_text()
    assert re.search(r"0\.400 <small>± 0\.030</small>\s*<br><small>\+0\.150, \+3\.5 s\.e\.", page)


def test_gains_are_those_over_the_random_initialization_of_the_same_model():
    first, second = (make_probe("stage1", top1, controls=True) for top1 in (0.9, 0.6))
    second["rows"][1]["value"] = 0.5
    third = make_probe("stage2", 0.8, controls=False)
    for result, model in ((first, "a"), (second, "b"), (third, "a")):
        result |= {"encoder": {"model": model}, "checkpoint": model, "manifests": {}}
    [table] = tables.join_results([first, second, third])["tables"]
    gains = [row["cells"]["shape"].get("gain") for row in table["rows"]]
    assert [round(gain["points"]) for gain in gains if gain] == [65, 10, 55]
