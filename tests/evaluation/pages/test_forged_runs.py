"""Workdirs from strangers: their files open no sockets, and end in one sentence."""

import json
import re
import socket

import ml_collections
import pytest

from configs import stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.evaluation.pages import clip_strips, report
from invnext_jax.evaluation.pages.reported_run import ReportedRun
from invnext_jax.watching import make_strips, run_view

WORLD = "world:simple/train?videos=4"


def make_config(**data):
    config = stage1.get_config("tiny")
    config.total_steps = 10
    config.data.update(manifest=WORLD, **data)
    return run_metadata.config_to_json(config)


def write_run(workdir, tree, **fields):
    """Writes a workdir whose checkpoint has no parameters."""
    folder = workdir / "checkpoints" / "5" / "meta"
    folder.mkdir(parents=True)
    digest = manifest_lib.hash_manifests(WORLD)
    record = {"config": tree, "step": 5, "git": "a", "versions": {}, "manifest_sha256": digest}
    record = {name: value for name, value in {**record, **fields}.items() if value is not ...}
    (folder / "metadata").write_text(json.dumps(record))
    return workdir


def nest(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def change(name, value):
    """Returns the config with another value of an option; `...` removes the option."""
    config = make_config()
    *sections, field = name.split("/")
    part = config
    for section in sections:
        part = part[section]
    part[field] = value
    if value is ...:
        del part[field]
    return config


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket connects"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name is resolved"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("stage", value) for value in ("nope", ["x"], ...)),
        *(("total_steps", value) for value in ("x", 10**400, -1, ...)),
        *(("batch_size", value) for value in (1e300, 10**400)),
        *(("encoder", value) for value in (5, ...)),
        *(("encoder/patch", value) for value in (0, "x")),
        *(("optimizer/learning_rate", value) for value in ("x", float("nan"), 1e300)),
        *(("data/frames", value) for value in (..., 2.5, True)),
        *(("data/clip_seconds", value) for value in (1e300, "x")),
        ("data/short_side", "x"),
        *(("variant", "\ud800"), ("a.b", 1), ("q", nest(40)), ("q", nest(450))),
    ],
)
def test_forged_configs_are_one_sentence(tmp_path, name, value):
    run = write_run(tmp_path / "run", change(name, value))
    with pytest.raises(UserError, match="use another run|use the config of the checkpoint"):
        report.write_report([run], tmp_path / "o.html", clips=0)
    (run / "config.json").write_text(json.dumps(change(name, value)))
    if name != "stage" or value in (["x"], ...):  # the page of a run does not use its stage
        with pytest.raises(UserError):
            run_view.read_record(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("git", 5),
            ("git", ...),
            ("versions", [1]),
            ("versions", {"jax": []}),
            ("versions", ...),
        ),
        *(("step", "x"), ("step", ...), ("step", 10**400), ("config", ...), ("config", [1])),
    ],
)
def test_forged_metadata_are_one_sentence(tmp_path, field, value):
    run = write_run(tmp_path / "run", make_config(), **{field: value})
    with pytest.raises(UserError, match=f"{field}.* use another run"):
        report.write_report([run], tmp_path / "o.html", clips=0)


def test_metadata_that_are_nested_too_deeply_are_one_sentence(tmp_path):
    run = write_run(tmp_path / "run", make_config())
    for depth in (100, 990, 20_000):
        text = '{"config": ' + '{"a":' * depth + "1" + "}" * depth + "}"
        (run / "checkpoints/5/meta/metadata").write_text(text)
        with pytest.raises(UserError, match="use another run"):
            report.write_report([run], tmp_path / "o.html", clips=0)


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:2121/x.csv", "https://127.0.0.1:2122/x.csv"])
def test_no_remote_manifest_is_read(tmp_path, no_network, address):
    config = make_config(protocols=("ftp", "http"), other_hosts=True)
    config["data"]["manifest"] = address
    run = write_run(tmp_path / "run", config)
    page = report.write_report([run], tmp_path / "o.html", clips=2).read_text()
    assert f"the manifest {address} is not a local file, so no clips are drawn" in page
    with pytest.raises(UserError, match="no clips are drawn"):
        make_strips.draw_newest(run, 2)


@pytest.mark.parametrize("address", ["https://127.0.0.1:9/1.mp4", "file:///1.mp4"])
def test_no_remote_videos_of_a_local_manifest_are_read(tmp_path, no_network, address):
    config = make_config(protocols=("http",), other_hosts=True)
    config["data"]["manifest"] = str(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text(f"path,source\n{address},x\n")
    run = write_run(tmp_path / "run", config)
    page = report.write_report([run], tmp_path / "o.html", clips=2).read_text()
    assert re.search(f"No clips: .*{address}", page)


def make_run(workdir, manifest, digest=None):
    config = make_config()
    config["data"]["manifest"] = str(manifest)
    digest = manifest_lib.hash_manifests(str(manifest)) if digest is None else digest
    record = {"config": config, "step": 5, "git": "", "versions": {}, "manifest_sha256": digest}
    return ReportedRun(workdir, record, [])


def test_a_run_shows_the_files_of_its_manifest(tmp_path):
    (tmp_path / "list.csv").write_text("path,source\n/videos/a.mp4,x\nb.mp4,x\n")
    found = clip_strips.open_manifest_of_run(make_run(tmp_path / "run", tmp_path / "list.csv"))
    assert list(found.paths) == ["/videos/a.mp4", str(tmp_path / "b.mp4")]
    assert len(clip_strips.open_manifest_of_run(make_run(tmp_path / "run", WORLD)).paths) == 4


@pytest.mark.parametrize("digest", ["", "0" * 64, 5])
def test_a_manifest_that_the_run_did_not_read_is_not_shown(tmp_path, digest):
    """A forged config names a list of this machine, whose content its author does not know."""
    (tmp_path / "list.csv").write_text("path,source\n/videos/a.mp4,x\n")
    with pytest.raises(UserError, match="is not the manifest with which .*run was trained"):
        clip_strips.open_manifest_of_run(make_run(tmp_path / "run", tmp_path / "list.csv", digest))


def test_a_manifest_that_came_with_the_run_lists_files_of_its_folder_only(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "private.mp4").write_bytes(b"x")
    (tmp_path / "run" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    manifest = tmp_path / "run" / "list.csv"
    for path in (str(tmp_path / "private.mp4"), "../private.mp4", "link.mp4"):
        manifest.write_text(f"path,source\nown.mp4,x\n{path},x\n")
        with pytest.raises(UserError, match=r"came with the run, but lists .* outside of it"):
            clip_strips.open_manifest_of_run(make_run(tmp_path / "run", manifest))
    manifest.write_text("path,source\nown.mp4,x\n")
    assert len(clip_strips.open_manifest_of_run(make_run(tmp_path / "run", manifest)).paths) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"frames": 4096, "size": 4096}, "describes clips of 1,073,741,824 patches"),
        ({"frames": 32, "size": 4096}, "describes clips of 8,388,608 patches"),
        ({"frames": 10**6}, "frames='1000000', which is not a whole number between 0 and 4096"),
        ({"short_side": 4096, "frames": 64}, "are not drawn: the limit is 268,435,456"),
        (
            {"frames": 129, "size": 128},
            "clips of 33,024 patches are not drawn: the limit is 32,768",
        ),
        ({"by_source": 5}, "the clips cannot be drawn"),
    ],
)
def test_sizes_are_checked_before_a_clip_or_a_model_is_made(tmp_path, monkeypatch, data, sentence):
    config = make_config()
    config["encoder"]["frames"] = config["encoder"]["size"] = 32
    config["data"].update(data)
    run = write_run(tmp_path / "run", config)
    monkeypatch.setattr(pretrained, "init_encoder", lambda *_: pytest.fail("a model is made"))
    page = report.write_report([run], tmp_path / "o.html", clips=3).read_text()
    assert "No clips:" in page and sentence.replace("'", "&#39;") in page
    with pytest.raises(UserError, match=sentence):
        make_strips.draw_newest(run, 2)


def test_sizes_of_an_older_checkpoint_are_checked(tmp_path, monkeypatch):
    """It is drawn if the newest one, whose sizes were checked first, is damaged."""
    run = write_run(tmp_path / "run", make_config())
    older = ml_collections.ConfigDict(make_config(frames=129, size=128))
    monkeypatch.setattr(pretrained, "load_params", lambda _: ({}, older))
    with pytest.raises(UserError, match="clips of 33,024 patches are not drawn"):
        make_strips.draw_newest(run, 2)
