"""Captions, prompts and choices of an evaluation."""

import json

import numpy as np
import pytest

from configs.eval.tasks import zero_shot
from invnext_jax.errors import UserError
from invnext_jax.evaluation.text import caption_data


@pytest.fixture
def config(tmp_path):
    """Two manifests of files that need not exist, with class names and captions."""
    config = zero_shot.get_config("tiny")
    config.data.root = str(tmp_path)
    for split in ("train", "val"):
        lines = [f"{split}{i}.mp4,x,{i % 2}\n" for i in range(3)]
        (tmp_path / f"{split}.csv").write_text("path,source,label_class\n" + "".join(lines))
        (tmp_path / f"{split}.classes.json").write_text('{"run": 0, "jump": 1}')
        config[f"{split}_manifest"] = str(tmp_path / f"{split}.csv")
    write(tmp_path / "train.captions.jsonl", [("train0", "a dog runs"), ("train1", "a cat jumps")])
    config.text.templates = ("{}", "a video of {}.")
    return config


def write(path, pairs, **fields):
    lines = [json.dumps({"video": name, "caption": text, **fields}) for name, text in pairs]
    path.write_text("\n".join(lines))


def test_files_next_to_the_manifests_are_read(config):
    texts = caption_data.read_texts(config, ("class",))
    assert texts.train.texts == texts.vocabulary == ["a dog runs", "a cat jumps"]
    assert texts.val is None and texts.choices == {}
    assert texts.prompts == {"class": [["run", "a video of run."], ["jump", "a video of jump."]]}
    assert [note[:13] for note in texts.notes] == ["1 of 3 videos"]


def test_captions_next_to_each_of_several_manifests_are_read(config, tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("b", "more/c"):
        lines = [f"{name[-1]}{i}.mp4,x,0\n" for i in range(2)]
        (tmp_path / f"{name}.csv").write_text("path,source,label_class\n" + "".join(lines))
    write(tmp_path / "b.captions.jsonl", [("b1", "a dog"), ("val0", "a cat")])
    config.val_manifest = ",".join(f"{tmp_path}/{name}.csv" for name in ("val", "b", "more/c"))
    first = caption_data.hash_files(config)
    write(tmp_path / "more" / "c.captions.jsonl", [("c0", ["a cat", "a dog"])])
    assert caption_data.hash_files(config) != first
    texts = caption_data.read_texts(config, ("class",))
    assert texts.val.texts == ["a dog", "a cat", "a dog"] and texts.val.skipped == 1
    assert texts.val.row_j.tolist() == [4, 5, 5] and texts.val.group_j.tolist() == [1, 0, 1]
    notes = [note.partition(" of /")[0] for note in texts.notes]
    assert notes == ["1 of 3 videos", "5 of 7 videos", "1 entries of the captions"]


def test_files_of_the_options_are_below_the_root(config, tmp_path):
    write(tmp_path / "other.jsonl", [("val2", ["a dog", "a pet"])])
    write(tmp_path / "mc.jsonl", [("val0", ["a dog", "a cat"])], answer=1)
    config.text.update(val_captions="other.jsonl", choices="mc.jsonl")
    texts = caption_data.read_texts(config, ("class",))
    assert texts.val.texts == ["a dog", "a pet"] and texts.val.row_j.tolist() == [2, 2]
    assert texts.choices["choices"].answer_b.tolist() == [1]
    config.text.join = True
    assert caption_data.read_texts(config, ("class",)).val.texts == ["a dog a pet"]


def test_hash_depends_on_the_contents_of_all_files(config, tmp_path):
    first = caption_data.hash_files(config)
    write(tmp_path / "val.captions.jsonl", [("val0", "a dog")])
    second = caption_data.hash_files(config)
    write(tmp_path / "val.captions.jsonl", [("val0", "a cat")])
    third = caption_data.hash_files(config)
    (tmp_path / "val.classes.json").write_text('{"running": 0, "jump": 1}')
    assert len({first, second, third, caption_data.hash_files(config)}) == 4


def test_large_files_are_refused_before_they_are_hashed(config, tmp_path):
    with open(tmp_path / "val.captions.jsonl", "wb") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(UserError, match=r"val.captions.jsonl cannot be read \(Larger than"):
        caption_data.hash_files(config)


def test_too_many_pairs_for_retrieval_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_data.scores, "MAX_PAIRS", 5)
    write(tmp_path / "val.captions.jsonl", [("val0", ["a", "b"]), ("val1", "c")])
    with pytest.raises(UserError, match="3 captions with 2 videos, more than 5 pairs"):
        caption_data.read_texts(config, ("class",))


def test_class_without_a_name_is_refused(config, tmp_path):
    (tmp_path / "val.csv").write_text("path,source,label_class\nval0.mp4,x,4\n")
    with pytest.raises(UserError, match="class 2 of label_class has no name"):
        caption_data.read_texts(config, ("class",))
    with pytest.raises(UserError, match="class 1 of label_x has no name"):  # and not 2**31 classes
        caption_data.fill_templates({"a": 0, "b": 2**31 - 1}, ["{}"], np.zeros(1, int), "x")


def test_prompts_are_not_made_from_the_names_of_another_task(config, tmp_path):
    lines = "path,source,label_class,label_scene\nval0.mp4,x,0,1\n"
    (tmp_path / "val.csv").write_text(lines)
    (tmp_path / "train.classes.json").unlink()
    with pytest.raises(UserError, match="names in .*val.classes.json are not used"):
        caption_data.read_texts(config, ("class", "scene"))
    (tmp_path / "val.classes.json").write_text('{"label_scene": {"indoor": 0, "outdoor": 1}}')
    config.text.templates = ("{}",)
    prompts = caption_data.read_texts(config, ("class", "scene")).prompts
    assert prompts == {"scene": [["indoor"], ["outdoor"]]}


def test_captions_of_other_videos_are_refused(config, tmp_path):
    write(tmp_path / "train.captions.jsonl", [("elsewhere", "a dog runs")])
    with pytest.raises(UserError, match="'elsewhere' is not in the manifest"):
        caption_data.read_texts(config, ("class",))


@pytest.mark.parametrize("level", ["simple", "full", "anticipation"])
def test_prompts_of_a_world_mention_their_class_and_no_other(level, config):
    world = f"world:{level}/val?videos=4"
    config.data.root = ""
    config.update(train_manifest=world, val_manifest=world)
    texts = caption_data.read_texts(config, ("shape", "motion", "noun", "verb"))
    expected = {"anticipation": {"noun", "verb"}}.get(level, {"shape", "motion"})
    assert texts.prompts.keys() == expected
    assert texts.choices.keys() == expected & {"motion"}
    for groups in texts.prompts.values():
        flat = [text for group in groups for text in group]
        assert len(set(flat)) == len(flat) == len(texts.vocabulary)
    assert set(texts.val.texts) <= set(texts.vocabulary)
    assert np.unique([len(group) for group in texts.prompts[min(expected)]]).size == 1
