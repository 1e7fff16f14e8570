"""A run notices videos that were replaced behind an unchanged manifest."""

import contextlib
import pathlib
import shutil

import ml_collections
import pytest

from invnext_jax import train
from invnext_jax.checkpointing import video_digests
from invnext_jax.errors import UserError


def make_record(*digests):
    rows = [{"row": 9 * n, "path": f"/v/{n}.mp4", "digest": d} for n, d in enumerate(digests)]
    return {"video_digests": rows}


def test_only_files_that_could_be_read_twice_are_compared():
    saved = make_record("a", "", "c", "d")
    current = make_record("a", "b", "", "x")
    assert video_digests.find_replaced(saved, current) == ["'/v/3.mp4'"]
    assert video_digests.find_replaced(make_record(), current) == []
    assert video_digests.find_replaced({}, current) == []  # a checkpoint of an older version
    assert video_digests.find_replaced(saved, make_record()) == []


def test_files_are_compared_by_row_so_that_they_can_be_moved():
    current = make_record("a", "b")
    for entry in current["video_digests"]:
        entry["path"] = f"/moved{entry['path']}"
    assert video_digests.find_replaced(make_record("a", "b"), current) == []


def test_errors_name_a_video_and_what_to_change():
    with pytest.raises(UserError, match=r"'/v/1.mp4' and 1 more of 3 that were .*restore"):
        video_digests.check_restored("f", make_record("a", "b", "c"), make_record("a", "x", "y"))
    with pytest.raises(UserError, match=r"'/v/0.mp4' of this process .* to all hosts"):
        video_digests.check_hosts(make_record("a"), make_record("b"))
    video_digests.check_hosts(make_record("a", ""), make_record("a", "b"))


def test_unreadable_videos_are_mentioned():
    assert video_digests.describe_unreadable(make_record("a", "b")) == ""
    sentence = video_digests.describe_unreadable(make_record("a", "", ""))
    assert sentence.startswith("2 of the 3 videos") and "'/v/1.mp4'" in sentence


def test_resumed_run_refuses_replaced_videos(
    tiny_config, world, stage1_run, one_device, tmp_path, capsys
):
    shutil.copytree(pathlib.Path(world).parent, tmp_path / "world")
    config = tiny_config("stage1")
    config.data.manifest = str(tmp_path / "world" / pathlib.Path(world).name)
    config = ml_collections.FrozenConfigDict(config)

    def resume():
        with contextlib.ExitStack() as stack:
            train.prepare(config, stage1_run, stack)
        return capsys.readouterr().out

    assert "cannot be read" not in resume()  # the files were moved
    first, second = sorted((tmp_path / "world").rglob("*.mp4"))[:2]
    content = first.read_bytes()
    first.unlink()
    assert "1 of the 16 videos that identify the data cannot be read" in resume()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=f"the video '{first}' of 16 that were compared changed"):
        resume()
    first.write_bytes(content)
    resume()
