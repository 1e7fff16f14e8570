"""Evaluation of a tiny untrained encoder on a tiny world, with the real config."""

import json

import pytest
from toy_evaluation import get_config

from invnext_jax.data.access_rules import DEFAULT_RULES
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, tables, video_scores
from invnext_jax.evaluation.evaluation_data import hash_videos
from invnext_jax.evaluation.evaluators import registry


def test_every_input_has_a_row_for_each_task(results):
    inputs = {(row["name"], row["input"]) for row in results["rows"]}
    assert inputs == {
        *((name, pooling) for name in ("encoder", "random") for pooling in ("mean", "frames")),
        *(
            (name, what)
            for name in ("first_frame", "bag_of_frames")
            for what in ("pixels", "boxes")
        ),
        ("ordered_track", "boxes"),
        ("supervised", "end to end"),
    }
    assert len(results["rows"]) == 3 * len(inputs)
    assert all(row["videos"] == 24 for row in results["rows"])
    assert set(results["tokens"]) == {"encoder", "random"}


def test_rows_name_their_evaluator_and_metric(results):
    for row in results["rows"]:
        assert row["evaluator"] in registry.EVALUATORS
        assert (row["metric"], row["n"], row["value"]) == ("top1", row["videos"], row["top1"])


def test_results_file_holds_rows_versions_and_config(folder, results):
    found = json.loads((folder / "p" / "results.json").read_text())
    assert found["rows"] == results["rows"]
    assert {"jax", "python"} <= set(found["run"]["versions"])
    assert found["run"]["config"]["data"]["size"] == 16
    for split in ("train", "val"):
        manifest = str(folder / "world" / f"{split}.csv")
        assert found["videos"][split] == hash_videos(manifest, DEFAULT_RULES, 60.0)


def test_table_has_a_line_for_each_input(results):
    lines = tables.format_table(results).splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [
        "top-1, %",
        "chance",
        "this encoder, mean",
    ]
    assert len(lines) == 2 + len({(r["name"], r["input"]) for r in results["rows"]}) + 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"val_manifest": ""}, "set config.train_manifest and config.val_manifest"),
        ({"val_manifest": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"tasks": ("size",)}, "no column label_size"),
        ({"poolings": ("max",)}, r"unknown poolings \['max'\]"),
        ({"evaluators": ()}, "config.evaluators is empty"),
        (
            {"evaluators": ("nearest",)},
            "config.evaluators has 'nearest', which is not one of linear_probe",
        ),
        ({"inverse_penalties": ()}, "config.inverse_penalties=.* must be positive"),
        ({"trees": 0}, "config.trees=0 must be at least 1"),
        ({"checkpoint": ""}, "config.checkpoint is empty"),
        ({"checkpoint": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_invalid_configs_are_one_sentence_errors(folder, changes, match):
    with pytest.raises(UserError, match=match):
        evaluate.evaluate_checkpoint(get_config(folder, **changes), folder / "other")


def test_scores_of_the_videos_are_stored_and_add_up_to_the_rows(folder, results):
    for row in results["rows"]:
        found = video_scores.read(folder / "p" / row["scores"]["file"], row["scores"]["row"])
        assert found.score_b.mean() == pytest.approx(row["value"])
        assert found.index_b.tolist() == list(range(row["n"]))


def test_frames_and_size_are_printed_and_stored(folder, tmp_path, capsys):
    changes = {"evaluators": ("linear_probe",), "tasks": ("shape",), "poolings": ("mean",)}
    config = get_config(folder, controls=False, **changes)
    found = evaluate.evaluate_checkpoint(config, tmp_path / "own")
    sentence = "clips of 4 frames of 16 x 16 pixels, sparse sampling, short side 16"
    assert f"stage1, 1 blocks of width 16, on {sentence}\n" in capsys.readouterr().out
    assert found["notes"] == []
    config.data.update(frames=2, sampling="dense", stride=(1, 3))
    found = evaluate.evaluate_checkpoint(config, tmp_path / "other")
    printed = capsys.readouterr().out
    sentence = "clips of 2 frames of 16 x 16 pixels, dense sampling with stride 2, short side 16"
    note = (
        "trained on clips of 4 frames of 16 x 16 pixels, sparse sampling, but config.data.frames=2 "
        "and config.data.sampling=dense. The results depend on these options."
    )
    for text in (printed, tables.format_table(found)):
        assert sentence in text and note in text
    stored = json.loads((tmp_path / "other" / "results.json").read_text())["clips"]
    assert (stored["frames"], stored["encoder_frames"], stored["stride"]) == (2, 4, 2)
    assert tables.join_results([found])["clips"] == {"Stage 1": sentence}
