"""Videos that one encoder gets right and another one wrong."""

import numpy as np
import pytest
from fake_evaluations import add_config, write_evaluation

from configs.eval.tasks import linear_probe
from invnext_jax.evaluation.pages import comparison, examples
from invnext_jax.evaluation.video_scores import VideoScores

VIDEOS = 12
WORLD = f"world:simple/val?videos={VIDEOS}&size=16&frames=2"


@pytest.fixture
def config():
    config = linear_probe.get_config("tiny")
    config.update(train_manifest=WORLD.replace("val", "train"), val_manifest=WORLD)
    config.data.update(manifest=WORLD, size=16, short_side=16, frames=2)
    return config


def make_pair(first, second, predicted=None):
    index_b = np.arange(len(first))
    return tuple(
        VideoScores(index_b, np.asarray(score_b, float), None, predicted)
        for score_b in (first, second)
    )


def test_largest_differences_come_first():
    first, second = [0.9, 0.1, 0.5, 0.5, 0.3, 0.6], [0.1, 0.8, 0.5, 0.4, 0.1, 0.5]
    groups = examples.find_examples(make_pair(first, second), higher_is_better=True)
    assert [[e.row for e in group] for group in groups] == [[0, 4, 3], [1]]
    assert groups[1][0].scores == pytest.approx((0.1, 0.8)) and groups[1][0].predicted is None
    swapped = examples.find_examples(make_pair(first, second), higher_is_better=False)
    assert [[e.row for e in group] for group in swapped] == [[1], [0, 4, 3]]


def test_only_common_videos_are_compared():
    first = VideoScores(np.array([5, 3]), np.array([1.0, 1.0]), None, np.array([4, 6]))
    second = VideoScores(np.array([3, 9]), np.array([0.0, 0.0]), None, np.array([2, 6]))
    better, worse = examples.find_examples((first, second), higher_is_better=True)
    assert worse == [] and [(e.row, e.predicted) for e in better] == [(3, (6, 2))]


def test_section_has_labels_and_predictions(tmp_path, config):
    labels_b = np.arange(VIDEOS) % 8  # the shapes of the world
    scores = np.ones((2, VIDEOS))
    scores[0, [2, 7]] = scores[1, 5] = 0
    folders = []
    for name, score_b in zip("ab", scores, strict=True):
        predicted_b = np.where(score_b > 0, labels_b, (labels_b + 1) % 8)
        folder = write_evaluation(tmp_path / name, WORLD, score_b, predicted=predicted_b)
        folders.append(add_config(folder, config))
    (section,) = examples.make_examples(comparison.read_evaluations(folders))
    assert section["task"] == "shape" and section["protocol"] == "Linear probe, mean"
    assert [group["title"] for group in section["groups"]] == ["Only a is right", "Only b is right"]
    assert [len(group["videos"]) for group in section["groups"]] == [1, 2]
    (video,) = section["groups"][0]["videos"]
    assert video["uri"].startswith("data:image/jpeg;base64,")
    assert [answer["is_right"] for answer in video["answers"]] == [True, False]
    assert video["answers"][0]["text"] != video["answers"][1]["text"]
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 3 and "Only b is right" in page


def test_answers_of_several_classes_are_right_or_wrong(tmp_path, config):
    """Of the five classes that count as predicted, only the first is stored."""
    scores = np.ones((2, VIDEOS))
    scores[1, 5] = 0
    predicted_b = np.full(VIDEOS, 2)  # the shape of video 5 is another one
    folders = [
        add_config(
            write_evaluation(
                tmp_path / name, WORLD, score_b, "class_mean_recall@5", predicted=predicted_b
            ),
            config,
        )
        for name, score_b in zip("ab", scores, strict=True)
    ]
    (section,) = examples.make_examples(comparison.read_evaluations(folders))
    ((video,), _) = (group["videos"] for group in section["groups"])
    first, second = video["answers"]
    assert first["text"].startswith("right; first: ") and first["is_right"]
    assert second["text"] == first["text"].partition(": ")[2] and not second["is_right"]


def test_values_are_written_if_scores_are_not_right_or_wrong(tmp_path, config):
    scores = np.full((2, VIDEOS), 0.5)
    scores[1, 4] = 0.25
    folders = [
        add_config(write_evaluation(tmp_path / name, WORLD, score_b, metric="mean_iou"), config)
        for name, score_b in zip("ab", scores, strict=True)
    ]
    (section,) = examples.make_examples(comparison.read_evaluations(folders))
    assert [group["title"] for group in section["groups"]] == ["a is better", "b is better"]
    (video,) = section["groups"][0]["videos"]
    assert [answer["text"] for answer in video["answers"]] == ["50.0", "25.0"]
    assert section["groups"][1]["videos"] == []


def test_page_without_the_videos_has_no_examples(tmp_path):
    (tmp_path / "val.csv").write_text("path,source,label_shape\na.mp4,x,0\nb.mp4,x,1\n")
    manifest = str(tmp_path / "val.csv")
    folders = [
        write_evaluation(tmp_path / name, manifest, scores)
        for name, scores in (("a", [1, 0]), ("b", [0, 1]))
    ]
    assert examples.make_examples(comparison.read_evaluations(folders)) == []
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert "data:image" not in page
