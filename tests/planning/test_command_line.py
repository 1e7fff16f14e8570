"""The plan of the command reads the same manifests as a training."""

import ml_collections
import pytest

from configs import common
from invnext_jax.data import held_out
from invnext_jax.planning import command_line

WORLD = "world:simple/train?videos=7&size=32&frames=2"


def make_data(manifest, **options):
    data = ml_collections.ConfigDict(common.defaults().data)
    data.update(manifest=manifest, **options)
    return data


@pytest.mark.parametrize(("names", "videos"), [(WORLD, 7), (f"{WORLD},a.csv", 9)])
def test_rendered_worlds_are_counted(names, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("path,source\na.mp4,x\nb.mp4,x\n")
    found = command_line._read_manifest(make_data(names))
    assert held_out.count_training_videos(found, 0) == videos
    assert capsys.readouterr().out == ""


def test_remote_manifests_are_read_by_the_rules_of_the_run(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(command_line.manifest, "read_manifest", lambda *args: calls.append(args))
    command_line._read_manifest(make_data("gs://b/a.csv", protocols=("gs",)))
    [(name, rules)] = calls
    assert name == "gs://b/a.csv" and rules.protocols == ("gs",)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("names", ["nowhere.csv", f"{WORLD},nowhere.csv"])
def test_missing_manifests_are_noted(names, capsys):
    assert command_line._read_manifest(make_data(names)) is None
    assert f"{names} does not exist here: planned for 1,100,000 videos" in capsys.readouterr().out
