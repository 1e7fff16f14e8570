"""Manifests refer only to files that the rules allow; opening an address never executes code."""

import json
import urllib.parse

import pytest

from configs import common
from invnext_jax.data import access_rules, video_io
from invnext_jax.data import files as files_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.errors import UserError
from invnext_jax.video.demux import BadVideo

RULES = AccessRules()


def read_rows(rows, folder, rules=RULES):
    (folder / "list.csv").write_text("path,source\n" + "".join(f"{row},a\n" for row in rows))
    return manifest_lib.read_manifest(folder / "list.csv", rules).paths


@pytest.mark.parametrize(
    "row",
    [
        "reference://clip.mp4",
        "http://host/clip.mp4",
        "memory://clip.mp4",
        "zip://clip.mp4",
        "filecache://clip.mp4",
        "jupyter://clip.mp4",
        "HTTPS://host/clip.mp4",
        "data://clip.mp4",
    ],
)
def test_other_protocols_are_refused(row, tmp_path):
    with pytest.raises(UserError, match=r"list\.csv, line 2: the protocol .* is not one of file"):
        read_rows([row], tmp_path)
    protocol = files_lib.protocol_of(row)
    allowed = AccessRules(protocols=(protocol,))
    allowed.check_row(row, "list.csv", "line 2")


@pytest.mark.parametrize("name", ["file:///a.csv", "/a.csv", "a.csv"])
def test_local_manifests_may_name_allowed_protocols(name):
    for row in ("/b/c.mp4", "c.mp4", "file:///c.mp4", "s3://b/c.mp4", "https://h/c.mp4"):
        RULES.check_row(video_io.join(video_io.folder_of(name), row), name, "line 2")


@pytest.mark.parametrize("manifest", ["https://me:pw@host/a/list.csv", "s3://host/a/list.csv"])
@pytest.mark.parametrize(
    "row",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "https://169.254.169.254/latest/meta-data",
        "https://host.evil.com/x",
        "https://host@evil.com/x",
        "gs://host/x",
    ],
)
def test_remote_manifests_name_only_files_of_their_host(row, manifest):
    joined = video_io.join(video_io.folder_of(manifest), row)
    with pytest.raises(UserError, match="line 3: a manifest on .*host may not refer to"):
        RULES.check_row(joined, manifest, "line 3")
    AccessRules(other_hosts=True).check_row(joined, manifest, "line 3")
    for same in ("b/c.mp4", manifest.replace("list.csv", "c.mp4"), "../c.mp4"):
        RULES.check_row(video_io.join(video_io.folder_of(manifest), same), manifest, "line 3")


@pytest.mark.parametrize(
    "host",
    [
        "evil.com#@good.com",
        "evil.com\\@good.com",
        "evil.com;@good.com",
        "evil.com\n@good.com",
        "evil.com[@good.com",
        "good.com@evil.com@good.com",
        "good.com#",
        "",
    ],
)
def test_addresses_with_an_unclear_host_are_refused(host):
    with pytest.raises(UserError, match=r"(?s)line 2: the host of the address .* is not valid"):
        RULES.check_row(f"https://{host}/x.mp4", "https://good.com/list.csv", "line 2")


@pytest.mark.parametrize("name", ["https://me:p%40w@good.com/x.mp4", "https://GOOD.com/a#@b/x.mp4"])
def test_the_host_is_that_of_the_client(name):
    assert urllib.parse.urlsplit(name).hostname == "good.com"
    RULES.check_row(name, "https://good.com/list.csv", "line 2")


def test_a_bucket_is_the_part_before_the_first_slash():
    for row in ("s3://evil#@good/x.mp4", "s3://evil@good/x.mp4", "s3://evil?@good/x.mp4"):
        with pytest.raises(UserError, match="may not refer to"):
            RULES.check_row(row, "s3://good/list.csv", "line 2")


def test_chains_of_file_systems_run_no_code(tmp_path):
    # In fsspec before 2026.6, ReferenceFileSystem renders templates in the file.
    mark = tmp_path / "ran"
    code = "{{ cycler.__init__.__globals__.os.popen('touch " + str(mark) + "').read() }}"
    generated = [{"key": "k{{i}}", "url": code, "dimensions": {"i": [0]}}]
    references = {"version": 1, "templates": {"u": "x"}, "gen": generated, "refs": {}}
    (tmp_path / "refs.json").write_text(json.dumps(references))
    name = f"reference://clip.mp4::file://{tmp_path}/refs.json"
    for rules in (RULES, AccessRules(protocols=("reference",))):
        with pytest.raises(UserError, match="chains file systems"):
            read_rows([name, "reference://clip.mp4"], tmp_path, rules)
    with pytest.raises((UserError, BadVideo), match="chains file systems"):
        with video_io.open_source(name):
            pass
    assert not mark.exists()


@pytest.mark.parametrize("fields", [{"protocols": "http"}, {"protocols": (1,)}, {"other_hosts": 1}])
def test_options_of_another_type_are_refused(fields):
    config = common.data()
    access_rules.check_config(config)
    with config.ignore_type():
        config.update(fields)
    with pytest.raises(UserError, match=f"config.data.{next(iter(fields))}="):
        access_rules.check_config(config)
