"""What the comparison page says about the videos of its evaluations, and what it compares."""

import numpy as np
import pytest
from fake_evaluations import ROW, add_config, write_evaluation

from configs.eval.tasks import linear_probe
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.evaluation import tables
from invnext_jax.evaluation.nearest_neighbors import NearestVideos
from invnext_jax.evaluation.pages import comparison, data_notes, examples, neighbor_examples

VIDEOS = 12
WORLD = f"world:simple/val?videos={VIDEOS}&size=16&frames=2"
SAME = "All encoders are evaluated on the same held-out videos."
DIFFERENT = "Not all encoders are evaluated on the same held-out videos; see the notes."


def write(folder, right, **changes):
    """Writes an evaluation in which the first `right` videos are classified correctly."""
    scores = (np.arange(VIDEOS) < right).astype(float)
    return write_evaluation(folder, WORLD, scores, **changes)


def write_pair(tmp_path, first, second):
    """Writes two evaluations with different `videos` and equal manifests, and reads them."""
    folders = [
        write(tmp_path / name, right, **changes)
        for name, right, changes in (("a", 3, first), ("b", 9, second))
    ]
    return comparison.read_evaluations(folders)


def find_differences(evaluations):
    protocol = comparison.Protocol("top1", "linear_probe", "mean")
    return comparison.make_table(evaluations, protocol)["differences"]


def make_videos(val="v", train="t"):
    return {"videos": {"train": train, "val": val}}


def test_equal_videos_are_compared_without_a_note(tmp_path):
    pair = write_pair(tmp_path, make_videos(), make_videos())
    assert (data_notes.describe_videos(pair), data_notes.find_notes(pair)) == (SAME, [])
    assert len(find_differences(pair)) == 1


def test_different_versions_of_the_code_are_noted(tmp_path):
    pair = write_pair(tmp_path, make_videos(), make_videos())
    for evaluation, commit in zip(pair, ("a" * 40, "b" * 40), strict=True):
        evaluation.results["run"]["git"] = commit
    (note,) = data_notes.find_notes(pair)
    assert "different versions of the code (aaaaaaaaaaaa and bbbbbbbbbbbb)" in note
    pair[0].results["run"]["git"] = ""
    assert data_notes.find_notes(pair) == []


def test_different_videos_behind_equal_manifests_are_not_compared(tmp_path):
    pair = write_pair(tmp_path, make_videos(), make_videos("other"))
    assert pair[0].results["manifests"] == pair[1].results["manifests"]
    assert find_differences(pair) == examples.make_examples(pair) == []
    assert data_notes.find_notes(pair) == [
        "b and a have different held-out videos, so no differences are shown."
    ]
    folders = [evaluation.folder for evaluation in pair]
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert DIFFERENT in page and SAME not in page


def test_neighbors_of_different_videos_are_not_shown_together(tmp_path):
    config = linear_probe.get_config("tiny")
    config.update(train_manifest=WORLD.replace("val", "train"), val_manifest=WORLD)
    config.data.update(manifest=WORLD, size=16, short_side=16, frames=2)
    nearest = NearestVideos(np.arange(VIDEOS), np.zeros((VIDEOS, 1), int), np.ones((VIDEOS, 1)))
    for first, second, is_shown in ((None, "other", True), ("v", "other", False)):
        folders = []
        for name, val in (("a", first), ("b", second)):
            changes = make_videos(val, None) if val else {}
            folder = write(tmp_path / f"{name}{is_shown}", 3, **changes)
            folders.append(add_config(folder, config, nearest))
        found = neighbor_examples.make_neighbors(comparison.read_evaluations(folders))
        assert (found is not None) == is_shown


@pytest.mark.parametrize("second", [{}, make_videos("other")])
def test_results_of_older_versions_are_compared_by_their_manifests(tmp_path, second):
    pair = write_pair(tmp_path, {}, second)
    assert len(find_differences(pair)) == 1
    assert data_notes.describe_videos(pair) == ""
    names = "a" if second else "a, b"
    assert data_notes.find_notes(pair) == [
        f"The results of {names} contain no hash of the videos, so their videos are compared by "
        "the manifests only. To add it, repeat launch/evaluate.py."
    ]


@pytest.mark.parametrize(
    "other",
    [
        make_videos(train="other"),
        {
            **make_videos(),
            "manifests": {"train": "other", "val": manifest_lib.hash_manifests(WORLD)},
        },
    ],
)
def test_probes_with_different_training_data_have_a_note(tmp_path, other):
    manifests = {"train": "m", "val": manifest_lib.hash_manifests(WORLD)}
    pair = write_pair(tmp_path, {"manifests": manifests, **make_videos()}, other)
    assert data_notes.find_notes(pair) == [
        "The probes of b and a were trained on different videos."
    ]
    assert data_notes.describe_videos(pair) == SAME and len(find_differences(pair)) == 1
    titles = ["V-JEPA 2 (2)", "V-JEPA 2 (1)"]
    assert tables.join_results([e.results for e in pair])["notes"] == [
        f"The probes of {titles[0]} and {titles[1]} were trained on different videos."
    ]


def make_own(digest):
    """Fields of results whose evaluator has its own manifests, with equal text."""
    row = {**ROW, "metric": "top1", "value": 0.5, "standard_error": 0.1, "n": VIDEOS}
    row |= {"scores": {"file": "rows/x.npz", "row": 0}, "videos_key": "m", "videos_digest": digest}
    return {**make_videos(), "rows": [row]}


def test_different_videos_of_an_evaluator_are_not_compared(tmp_path):
    pair = write_pair(tmp_path, make_own("x"), make_own("y"))
    assert find_differences(pair) == [] and data_notes.describe_videos(pair) == DIFFERENT
    assert data_notes.find_notes(pair) == [
        "b and a have different held-out videos for linear probe, so their differences are not "
        "shown."
    ]
    same = write_pair(tmp_path / "same", make_own("x"), make_own("x"))
    assert len(find_differences(same)) == 1 and data_notes.describe_videos(same) == SAME


def test_different_captions_are_not_compared(tmp_path):
    row = {**make_own("x")["rows"][0], "evaluator": "text_alignment"}
    first, second, older = (
        {**make_videos(), "rows": [{**row, **texts}]}
        for texts in ({"texts_digest": "x"}, {"texts_digest": "y"}, {})
    )
    protocol = comparison.Protocol("top1", "text_alignment", "mean")
    pair = write_pair(tmp_path, first, second)
    assert comparison.make_table(pair, protocol)["differences"] == []
    assert data_notes.describe_videos(pair) == SAME
    assert data_notes.find_notes(pair) == [
        "b and a have different captions, candidates or text towers for text alignment, so their "
        "differences are not shown."
    ]
    for name, same in (("same", first), ("older", older)):
        pair = write_pair(tmp_path / name, first, same)
        assert len(comparison.make_table(pair, protocol)["differences"]) == 1
        assert data_notes.find_notes(pair) == []


def test_nothing_is_claimed_about_data_sets_without_manifests(tmp_path):
    changes = {"manifests": {"train": "", "val": ""}, **make_videos("", "")}
    assert data_notes.describe_videos(write_pair(tmp_path, changes, changes)) == ""


def test_reports_note_different_held_out_videos(tmp_path):
    pair = write_pair(tmp_path, make_videos(), make_videos("other"))
    assert tables.join_results([e.results for e in pair])["notes"] == [
        "V-JEPA 2 (2) and V-JEPA 2 (1) are evaluated on different held-out videos."
    ]
