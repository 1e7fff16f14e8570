"""Nearest training videos of the encoders of a comparison."""

import numpy as np
import pytest
from fake_evaluations import add_config, write_evaluation

from configs.eval.tasks import linear_probe
from invnext_jax.evaluation.nearest_neighbors import NearestVideos
from invnext_jax.evaluation.pages import comparison, neighbor_examples, video_labels

VIDEOS = 12
WORLD = f"world:simple/val?videos={VIDEOS}&size=16&frames=2"
TRAIN = WORLD.replace("val", "train")


@pytest.fixture
def config():
    config = linear_probe.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=WORLD)
    config.data.update(manifest=WORLD, size=16, short_side=16, frames=2)
    return config


def read_shapes(config):
    results = {"run": {"config": config.to_dict()}}
    digests = video_labels.manifest_lib.hash_manifests
    results["manifests"] = {"train": digests(TRAIN), "val": digests(WORLD)}
    return [video_labels.read_labels(results, s, ["shape"])["shape"] for s in ("train", "val")]


def make_neighbors(find):
    neighbor_bk = np.array([[find(b), (find(b) + 1) % VIDEOS] for b in range(VIDEOS)])
    return NearestVideos(np.arange(VIDEOS), neighbor_bk, np.tile([0.9, 0.5], (VIDEOS, 1)))


def test_neighbors_of_all_encoders_are_shown_with_their_classes(tmp_path, config):
    train, val = read_shapes(config)
    same = [int(np.argmax(train.labels_b == label)) for label in val.labels_b]
    share = np.mean(train.labels_b[same] == val.labels_b)
    folders = [
        add_config(
            write_evaluation(tmp_path / name, WORLD, np.ones(VIDEOS)),
            config,
            make_neighbors(find),
        )
        for name, find in (("a", same.__getitem__), ("b", ([0] * VIDEOS).__getitem__))
    ]
    evaluations = comparison.read_evaluations(folders)
    found = neighbor_examples.make_neighbors(evaluations)
    assert found["tasks"] == ["shape"]
    assert found["agreement"][0] == ("a", {"shape": f"{100 * share:.1f}"})
    expected = np.mean(val.labels_b == train.labels_b[0])
    assert found["agreement"][1] == ("b", {"shape": f"{100 * expected:.1f}"})
    assert len(found["videos"]) == neighbor_examples.QUERIES
    for video in found["videos"]:
        first, other = video["encoders"]
        assert (first["title"], other["title"]) == ("a", "b")
        assert len(first["neighbors"]) == len(other["neighbors"]) == 2
        ((word, is_same),) = first["neighbors"][0]["words"]
        assert is_same == (word == video["label"])
        assert other["neighbors"][0]["words"][0][0] == train.name_class(int(train.labels_b[0]))
        assert first["neighbors"][0]["similarity"] == "0.900"
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == neighbor_examples.QUERIES * (1 + 2 * 2)


def test_one_encoder_with_neighbors_is_not_enough(tmp_path, config):
    folders = [write_evaluation(tmp_path / n, WORLD, np.ones(VIDEOS)) for n in "ab"]
    add_config(folders[0], config, make_neighbors(lambda b: b))
    add_config(folders[1], config)
    assert neighbor_examples.make_neighbors(comparison.read_evaluations(folders)) is None
    add_config(folders[1], config, make_neighbors(lambda b: b))
    (folders[1] / "rows" / "n.npz").write_bytes(b"damaged")
    assert neighbor_examples.make_neighbors(comparison.read_evaluations(folders)) is None
