import os

import numpy as np
import pytest
import truth_layouts

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import epic_kitchens


@pytest.fixture
def epic(tmp_path):
    return truth_layouts.write_epic(tmp_path)


def test_annotations_are_read(epic):
    found = epic_kitchens.read_annotations(epic / "EPIC_100_train.csv")
    assert found.videos == ["P01_01", "P01_01", "P02_03"] and found.skipped == 0
    np.testing.assert_allclose(found.start_b, [10, 20, 0.5])
    np.testing.assert_allclose(found.stop_b, [12, 21, 1])
    np.testing.assert_array_equal(found.verb_b, [0, 3, 0])
    np.testing.assert_array_equal(found.noun_b, [5, 5, 7])


def test_actions_are_the_pairs_of_the_training_split(epic):
    train, val = (
        epic_kitchens.read_annotations(epic / f"EPIC_100_{split}.csv")
        for split in ("train", "validation")
    )
    classes = epic_kitchens.action_classes(train)
    assert classes == {(0, 5): 0, (0, 7): 1, (3, 5): 2}
    np.testing.assert_array_equal(epic_kitchens.action_labels(train, classes), [0, 2, 1])
    np.testing.assert_array_equal(epic_kitchens.action_labels(val, classes), [2, -1])


def test_context_ends_one_second_before_the_action():
    start, stop = np.array([65.25, 0.5]), np.array([70.0, 1.0])
    low, high = epic_kitchens.clip_times(start, stop)
    np.testing.assert_allclose(high, [64.25, epic_kitchens.MIN_SECONDS])
    np.testing.assert_allclose(low, [60.25, 0])
    low, high = epic_kitchens.clip_times(start, stop, anticipation=0.25, point=0.2, context=2)
    np.testing.assert_allclose(high[0], 65.25 + 0.2 * 4.75 - 0.25)
    np.testing.assert_allclose(high[0] - low[0], 2)


def test_context_from_the_end_follows_the_released_formula():
    start, stop, fps = np.array([65.25]), np.array([70.0]), 60
    for point in (0.0, 0.2):
        start_frame, stop_frame = start * fps, stop * fps
        last_frame = start_frame * point + (1 - point) * stop_frame - 1.0 * fps
        _, high = epic_kitchens.clip_times(start, stop, point=point, from_end=True)
        np.testing.assert_allclose(high, last_frame / fps)


def test_manifests_have_clips_and_labels(epic, tmp_path):
    found = epic_kitchens.write_manifests(epic, epic / "videos", tmp_path / "out")
    val = manifest_lib.read_manifest(str(found["val"]))
    assert [path.removeprefix(f"{epic}/") for path in val.paths] == (
        ["videos/P01/videos/P01_05.MP4"] * 2
    )
    np.testing.assert_allclose(val.start, [60.25, 75])
    np.testing.assert_allclose(val.end, [64.25, 79])
    np.testing.assert_array_equal(val.labels["label_action"], [2, -1])
    np.testing.assert_array_equal(val.labels["label_verb"], [3, 3])
    assert len(manifest_lib.read_manifest(str(found["train"]))) == 3


def test_frame_numbers_replace_missing_time_stamps(epic):
    path = epic / "EPIC_100_train.csv"
    path.write_text("video_id,start_frame,stop_frame,verb_class,noun_class\nP01_01,100,200,1,2\n")
    found = epic_kitchens.read_annotations(path, fps=50.0)
    np.testing.assert_allclose((found.start_b[0], found.stop_b[0]), (2, 4))
    with pytest.raises(UserError, match="no column 'start_timestamp'"):
        epic_kitchens.read_annotations(path)


@pytest.mark.parametrize(
    "row",
    [
        "x,P01_01,00:00:01.0,00:00:02.0,60,120,97,5",  # unknown verb
        "x,P01_01,00:00:01.0,00:00:02.0,60,120,5,300",  # unknown noun
        "x,P01_01,00:00:01.0,00:00:02.0,60,120,-1,5",
        "x,P01_01,00:00:01.0,00:00:02.0,60,120,put,5",
        "x,P01_01,00:00:03.0,00:00:02.0,60,120,1,5",  # ends before it starts
        "x,P01_01,nan:00:01.0,00:00:02.0,60,120,1,5",
        "x,P01_01,1.0,2.0,60,120,1,5",
        "x,,00:00:01.0,00:00:02.0,60,120,1,5",
        "x",
    ],
)
def test_damaged_rows_and_unknown_classes_are_skipped(epic, row):
    path = epic / "EPIC_100_train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, row]) + "\n")
    found = epic_kitchens.read_annotations(path)
    assert len(found.videos) == 3 and found.skipped == 1
    path.write_text(f"{lines[0]}\n{row}\n")
    with pytest.raises(UserError, match="no valid action .*line 2") as caught:
        epic_kitchens.read_annotations(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "video", ["P01_01\rx", "P01_01\x1b[31m", "../../x", "a" * 300, "\0", ".._1"]
)
def test_rows_with_names_that_no_video_has_are_skipped(epic, video):
    path = epic / "EPIC_100_train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, f'x,"{video}",00:00:01.0,00:00:02.0,60,120,1,5']) + "\n")
    assert epic_kitchens.read_annotations(path).skipped == 1


def test_frame_numbers_of_400_digits_are_skipped(epic):
    path = epic / "EPIC_100_train.csv"
    path.write_text(
        "video_id,start_frame,stop_frame,verb_class,noun_class\n"
        f"P01_01,100,200,1,2\nP01_01,1,{10**400},1,2\n"
    )
    assert epic_kitchens.read_annotations(path, fps=60.0).skipped == 1


def test_folders_may_have_a_carriage_return_in_their_name(epic, tmp_path):
    videos = tmp_path / "a\rb"
    videos.mkdir()
    found = epic_kitchens.write_manifests(epic, videos, tmp_path / "out")
    assert all("a\rb" in path for path in manifest_lib.read_manifest(str(found["train"])).paths)


def test_annotations_in_a_named_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="cannot be read .Not a regular file"):
        epic_kitchens.read_annotations(tmp_path / "pipe.csv")


def test_a_wrong_layout_is_one_sentence(epic, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        epic_kitchens.write_manifests(epic, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        epic_kitchens.read_annotations(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="no column 'video_id'"):
        epic_kitchens.read_annotations(tmp_path / "empty.csv")


def test_tables_with_too_many_columns_are_refused(tmp_path):
    # Each row would become a dict with one item for each column.
    names = ",".join(["video_id", *(f"c{number}" for number in range(1000))])
    (tmp_path / "a.csv").write_text(names + "\nx" * 10)
    with pytest.raises(UserError, match="1,001 columns, more than 1,000"):
        epic_kitchens.read_annotations(tmp_path / "a.csv")


def test_rows_with_shifted_cells_are_skipped_and_repeated_columns_refused(tmp_path):
    path = tmp_path / "EPIC_100_train.csv"
    header = "narration,video_id,start_timestamp,stop_timestamp,verb_class,noun_class,extra"
    rows = ["cut,P01_01,00:00:01,00:00:02,3,5,1", "cut, slowly,P01_01,00:00:01,00:00:02,3,5,1"]
    rows.append("cut,P01_01,00:00:01,00:00:02,3,5")
    path.write_text("\n".join([header, *rows]) + "\n")
    found = epic_kitchens.read_annotations(path)
    assert (found.verb_b.tolist(), found.skipped) == ([3], 2)
    path.write_text(header.replace("extra", "Verb_class") + "\n" + rows[0] + "\n")
    with pytest.raises(UserError, match="'verb_class' and 'Verb_class': rename one"):
        epic_kitchens.read_annotations(path)
