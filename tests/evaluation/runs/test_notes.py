"""Notes and counts about unreadable, repeated and copied videos are in the results and on pages."""

import shutil

import ml_collections
import pytest
from toy_evaluation import get_config

from invnext_jax.evaluation import evaluate, evaluation_data, tables
from invnext_jax.evaluation.evaluators import registry, separate_data
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.pages import comparison

CHANGES = {"evaluators": ("knn",), "controls": False, "tasks": ("shape",), "poolings": ("mean",)}


@pytest.fixture
def data(folder, tmp_path):
    """A world with two damaged held-out videos, one of which is listed twice."""
    shutil.copytree(folder / "world", tmp_path / "world")
    path = tmp_path / "world" / "val.csv"
    header, *rows = path.read_text().splitlines()
    for row in rows[3:5]:
        (tmp_path / "world" / row.split(",")[0]).write_bytes(b"not a video")
    path.write_text("\n".join([header, *rows, rows[4], rows[7]]) + "\n")
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_and_repeated_videos_are_counted(folder, data, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr(evaluation_data, "IN_MEMORY_BYTES", 0)
    config = get_config(data, checkpoint=str(folder / "encoder.safetensors"), **CHANGES)
    config.knn.neighbors = (5, 100)
    for _ in range(2):
        found = evaluate.evaluate_checkpoint(config, data / "p")
        # Row 24 repeats row 4. Rows 3 and 4 are different files with the same content.
        assert found["splits"]["unreadable"] == {"train": 0, "val": 3}
        assert (found["splits"]["held_out"], found["splits"]["repeats"]) == (26, 3)
        unreadable, repeated = (
            [note for note in found["notes"] if words in note]
            for words in ("could not be read", "occur earlier in the same list")
        )
        assert len(unreadable) == len(repeated) == 1
        assert unreadable[0].startswith("3 of 26 held-out videos could not be read, such as '")
        assert repeated[0].startswith("3 of 26 held-out videos occur earlier")
        assert unreadable[0] in tables.format_table(found)
        assert {row["n"] for row in found["rows"]} == {23}
        assert [row["input"] for row in found["rows"]] == [
            *("mean, 5 neighbors", "mean, 48 neighbors")
        ]
        # The second time, the features are read from the cache.
        shutil.rmtree(data / "p" / "rows")
        (data / "p" / "results.json").unlink()
    evaluate.evaluate_checkpoint(config, data / "p")
    shutil.copytree(data / "p", data / "q")
    page = comparison.write_comparison([data / "p", data / "q"], data / "page.html").read_text()
    assert "p: 3 of 26 held-out videos could not be read" in page


class OwnData:
    name, is_baseline, options = "own_data", False, ("own_data",)

    def check_config(self, config):
        pass

    def needs_manifests(self, config):
        return False

    def evaluate(self, inputs, config):
        opened = separate_data.open_inputs(inputs, config.own_data, config, self.name)
        if opened is None:
            return []
        count = float(len(opened[0].dataset.videos("val").index_b))
        return [Row(self.name, inputs.name, "", "count", "videos", count, None, 1)]


def test_notes_about_the_videos_of_an_evaluator_are_in_the_results(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.EVALUATORS, "own_data", OwnData())
    config = get_config(folder, evaluators=("own_data",), train_manifest="", val_manifest="")
    world = "world:anticipation/train?size=16&frames=6&videos="
    own = {"train_manifest": f"{world}8", "val_manifest": f"{world}4"}
    config.own_data = ml_collections.ConfigDict(own)
    found = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    (note,) = found["notes"]
    assert note.startswith("own_data: 4 of 4 held-out videos are also training videos")
    assert evaluate.evaluate_checkpoint(config, tmp_path / "p")["notes"] == [note]
    config.own_data.train_manifest = str(tmp_path / "none.csv")
    found = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    assert found["notes"] == [f"own_data: skipped, because {tmp_path}/none.csv does not exist"]
