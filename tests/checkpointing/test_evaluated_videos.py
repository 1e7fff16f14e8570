"""Identity of the videos of `config.eval`, between hosts and between a run and its checkpoints."""

import pytest

from invnext_jax.checkpointing import evaluated_videos, run_metadata
from invnext_jax.data.manifest import read_manifest
from invnext_jax.errors import UserError


@pytest.fixture
def describe(toy_config, tmp_path):
    """Returns a function that describes a run which evaluates a manifest of two files."""

    def make(folder="a", contents=(b"1", b"2"), every_steps=1, **options):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for number, content in enumerate(contents):
            (path / f"{number}.mp4").write_bytes(content)
        rows = "".join(f"{number}.mp4,x\n" for number in range(len(contents)))
        (path / "val.csv").write_text(f"path,source\n{rows}")
        config = toy_config.copy_and_resolve_references()
        config.eval.update(every_steps=every_steps, manifest=str(path / "val.csv"), **options)
        identity = evaluated_videos.identify(config, read_manifest(config.eval.manifest))
        return run_metadata.describe_run(config, "m", evaluation=identity)

    return make


def test_hosts_must_evaluate_the_same_videos(describe):
    first = describe()
    evaluated_videos.check_hosts(first, describe("moved"))
    with pytest.raises(UserError, match="b/val.csv' of this process .* of '.*a/val.csv' of proc"):
        evaluated_videos.check_hosts(first, describe("b", (b"1", b"2", b"3")))
    with pytest.raises(UserError, match=r"'.*c/1.mp4' of this process differs from .* process 0"):
        evaluated_videos.check_hosts(first, describe("c", (b"1", b"x")))
    off = describe(every_steps=0)
    assert off["evaluation"] == {}
    evaluated_videos.check_hosts(off, off)


def test_changes_are_described_and_their_step_is_kept(describe):
    saved = describe()
    assert evaluated_videos.describe_change(saved, describe("moved")) == ""
    for changed, text in (
        (describe(neighbors=3, videos=8), r"eval.videos: 512 -> 8; config.eval.neighbors: 10 -> 3"),
        (describe("b", (b"1", b"2", b"3")), "a/val.csv' -> '"),
        (describe("c", (b"1", b"x")), "the content of 1 videos, such as "),
    ):
        assert text in evaluated_videos.describe_change(saved, changed)
        later = evaluated_videos.update_record(saved, changed, 30)
        assert evaluated_videos.since_step(later) == 30
        again = evaluated_videos.update_record(later, changed, 60)
        assert evaluated_videos.since_step(again) == 30
    same = evaluated_videos.update_record(saved, describe("moved"), 30)
    assert evaluated_videos.since_step(same) == 0


def test_a_pause_of_the_evaluation_keeps_the_identity(describe):
    off = describe(every_steps=0)
    started = evaluated_videos.update_record(off, describe(), 30)
    assert evaluated_videos.since_step(started) == 0
    paused = evaluated_videos.update_record(describe(), off, 30)
    other = describe("b", (b"1", b"2", b"3"))
    assert evaluated_videos.describe_change(paused, other)
    assert not evaluated_videos.describe_change(paused, describe())


def test_checkpoints_of_older_versions_are_compared_by_their_options(describe):
    saved = describe()
    del saved["evaluation"]
    assert not evaluated_videos.describe_change(saved, describe())
    assert "moved/val.csv" in evaluated_videos.describe_change(saved, describe("moved"))
    del saved["config"]["eval"]
    assert not evaluated_videos.describe_change(saved, describe())
