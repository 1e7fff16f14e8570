"""The hash of the videos of an evaluation covers every local file."""

import shutil

import pytest

from invnext_jax.data.access_rules import DEFAULT_RULES
from invnext_jax.evaluation.inputs import hash_videos


@pytest.fixture
def manifest(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number]) * 100)
    rows = "".join(f"{number}.mp4,x\n" for number in range(40))
    (tmp_path / "a.csv").write_text("path,source\n" + rows)
    return tmp_path / "a.csv"


def test_each_file_counts_but_not_its_place(manifest, tmp_path):
    first = hash_videos(str(manifest), DEFAULT_RULES, 60.0)
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert hash_videos(str(tmp_path / "moved" / "a.csv"), DEFAULT_RULES, 60.0) == first
    for name in ("7.mp4", "39.mp4"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"other")
        assert hash_videos(str(manifest), DEFAULT_RULES, 60.0) != first
        (tmp_path / name).unlink()
        assert hash_videos(str(manifest), DEFAULT_RULES, 60.0) != first
        (tmp_path / name).write_bytes(content)
    assert hash_videos(str(manifest), DEFAULT_RULES, 60.0) == first


def test_rendered_worlds_add_nothing(manifest):
    joined = f"{manifest},world:simple/train?videos=3"
    assert hash_videos(joined, DEFAULT_RULES, 60.0) == hash_videos(
        str(manifest), DEFAULT_RULES, 60.0
    )
    world = "world:simple/train?videos=1000000000"  # the rows are not generated
    assert hash_videos(world, DEFAULT_RULES, 60.0) != hash_videos(
        str(manifest), DEFAULT_RULES, 60.0
    )
