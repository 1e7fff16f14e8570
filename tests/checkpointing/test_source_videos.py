"""Evaluated videos on which the run in `init_from`, or one before it, has trained."""

import pytest

from invnext_jax.checkpointing import source_videos
from invnext_jax.data.manifest import hash_manifests, read_manifest
from invnext_jax.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a manifest of numbered files."""

    def make(name, numbers):
        rows = "".join(f"{number}.mp4,x\n" for number in numbers)
        (tmp_path / name).write_text(f"path,source\n{rows}")
        return str(tmp_path / name)

    return make


@pytest.fixture
def describe(toy_config, monkeypatch):
    """Returns a function (manifest, held out, runs, eval.manifest) -> the sentence.

    `runs` has (manifest, held out, init_from) of earlier runs by workdir.
    """

    def make(manifest, count, runs, evaluated="", init_from="a"):
        def read(path):
            if path not in runs:
                raise UserError("no run")
            name, its_count, source = runs[path]
            data = {"manifest": name, "held_out": its_count}
            fields = {"data": data, "init_from": source}
            return {"config": fields, "manifest_sha256": hashes[name]}

        monkeypatch.setattr(source_videos.run_record, "read_run_record", read)
        monkeypatch.setattr(source_videos.run_record, "check_config", lambda *_: None)
        config = toy_config.copy_and_resolve_references()
        config.init_from = init_from
        config.data.update(manifest=manifest, held_out=count)
        config.eval.update(every_steps=1, manifest=evaluated)
        rows = read_manifest(evaluated) if evaluated else None
        return source_videos.describe_source(config, read_manifest(manifest), rows)

    hashes = {}
    make.hashes = hashes
    return make


def test_evaluated_videos_of_the_training_of_a_source_are_described(write, describe):
    first, other = write("m.csv", range(40)), write("n.csv", range(100, 140))
    describe.hashes |= {name: hash_manifests(name) for name in (first, other)}
    assert describe(first, 8, {"a": (first, 8, "")}) == ""
    assert describe(first, 8, {"a": (other, 0, "")}) == ""
    assert "a trained on 8 of 8 evaluated videos" in describe(first, 8, {"a": (first, 0, "")})
    assert "a trained on 4 of 8 evaluated videos" in describe(first, 8, {"a": (first, 4, "")})
    chain = {"a": (first, 8, "b"), "b": (first, 0, "")}
    assert "warning: b trained on 8 of 8 evaluated videos" in describe(first, 8, chain)
    loop = {"a": (first, 8, "b"), "b": (first, 8, "a")}
    assert describe(first, 8, loop) == ""
    overlap = write("val.csv", [3, 200])
    text = describe(other, 0, {"a": (first, 0, "")}, overlap)
    assert "a trained on 1 of 2 evaluated videos" in text and "3.mp4" in text
    assert describe(first, 8, {}, init_from="encoder.safetensors") == ""


def test_a_manifest_that_was_changed_since_is_unknown(write, describe):
    """One more row draws other held-out videos."""
    name = write("m.csv", range(40))
    describe.hashes |= {name: hash_manifests(name), "gone.csv": "0"}
    write("m.csv", range(41))
    for manifest in (name, "gone.csv"):
        text = describe(name, 8, {"a": (manifest, 8, "")})
        assert text.startswith("warning: it is unknown whether a trained on the evaluated videos")
    describe.hashes[name] = hash_manifests(name)
    assert describe(name, 8, {"a": (name, "x", "")}).startswith("warning: it is unknown")
