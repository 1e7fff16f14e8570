"""Columns of a manifest: those that are not read, likely mistakes, and names of their classes."""

import json
import logging
import re

import pytest

from invnext_jax.data import class_names, columns, manifest
from invnext_jax.dataset_prep import indexing, shard_writer
from invnext_jax.errors import UserError

NESTED = '{"label_x": {"a": 0}, "b": 1}'


@pytest.fixture
def warnings(caplog):
    columns._warn_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="absl")
    return caplog


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("start_time", "start"),
        ("time_start", "start"),
        ("startTime", "start"),
        ("start (s)", "start"),
        (" start", "start"),
        ("clip_start_sec", "start"),
        ("begin", "start"),
        ("from", "start"),
        ("to", "end"),
        ("t0", "start"),
        ("T1", "end"),
        ("start_frame", "start"),
        ("END", "end"),
        ("end_time", "end"),
        ("t-end", "end"),
        ("Record", "record"),
        (" label_shape", "label_shape"),
        ("Label_Shape", "label_shape"),
        ("label-shape", "label_shape"),
    ],
)
def test_columns_that_would_change_what_is_read_are_refused(name, meant, tmp_path):
    (tmp_path / "a.csv").write_text(f"path,source,{name}\na.mp4,x,1\n")
    with pytest.raises(UserError, match=f"a column .*, which is not read: rename it to '{meant}'"):
        manifest.read_manifest(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["segment", "Segments (s)", "timeRange", "interval", "timestamps"])
def test_columns_with_both_limits_are_refused(name, tmp_path):
    (tmp_path / "a.csv").write_text(f"path,source,{name}\na.mp4,x,1-2\n")
    cure = rf"replace it by the columns 'start' and 'end' in seconds .*'original_{re.escape(name)}'"
    with pytest.raises(UserError, match=cure):
        manifest.read_manifest(tmp_path / "a.csv")


def test_numbers_of_segments_and_segments_with_limits_are_only_listed(tmp_path, warnings):
    columns.check_columns("a.csv", ["path", "source", "segment_index", "original_segment"])
    columns.check_columns("b.csv", ["path", "source", "start", "end", "segment"])
    assert "'segment_index', 'original_segment'" in warnings.text
    assert "b.csv: columns that are not read: 'segment'" in warnings.text


def test_range_columns_may_stand_next_to_the_ones_that_are_read(tmp_path, warnings):
    (tmp_path / "a.csv").write_text("path,source,start,start_time,end,frame_end\na,x,1,9,2,8\n")
    table = manifest.read_manifest(tmp_path / "a.csv")
    assert (table[0].start, table[0].end) == (1, 2)
    assert "'start_time' (similar to 'start'), 'frame_end' (similar to 'end')" in warnings.text


def test_columns_that_are_not_read_are_listed_once(tmp_path, warnings):
    header = "path,source,caption,strat,label,original_start,weekend"
    (tmp_path / "a.csv").write_text(f"{header}\na.mp4,x,c,1,3,0,1\n")
    for _ in range(2):
        manifest.read_manifest(tmp_path / "a.csv")
    (message,) = [record.getMessage() for record in warnings.records]
    assert message.startswith(f"manifest {tmp_path}/a.csv: columns that are not read: 'caption', ")
    for part in ("'strat' (similar to 'start')", "'label' (similar to 'label_<task>')"):
        assert part in message
    assert message.endswith("'original_start', 'weekend'")


def test_columns_of_our_own_manifests_are_known(tmp_path, warnings):
    own = (
        *("path", "source", "start", "end", "record", "label_x", *indexing.PROBE_COLUMNS),
        *(*shard_writer.VIDEO_COLUMNS, "original", *columns.ORIGINAL_TIMES),
    )
    columns.check_columns("a.csv", list(dict.fromkeys(own)))
    assert not warnings.records


def test_manifests_with_too_many_columns_are_refused():
    with pytest.raises(UserError, match="manifest m has 1,001 columns, more than 1,000"):
        columns.check_columns("m", ["path"] * 1001)


@pytest.mark.parametrize("content", ['{"a": -1}', '{"a": 3000000000}', "[" * 10**5, "\xff", NESTED])
def test_damaged_class_names_are_one_sentence(content, tmp_path):
    (tmp_path / "m.classes.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"m\.classes\.json cannot be read \("):
        class_names.read_manifest_classes(tmp_path / "m.csv", ["label_x"], [])


def test_large_files_of_class_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(class_names, "MAX_NAMES_BYTES", 10)
    (tmp_path / "m.classes.json").write_text('["a", "b", "c"]')
    with pytest.raises(UserError, match="Larger than 10 bytes"):
        class_names.read_manifest_classes(tmp_path / "m.csv", ["label_x"], [])


def read_names(tmp_path, content, columns):
    (tmp_path / "m.classes.json").write_text(content)
    notes = []
    return class_names.read_manifest_classes(tmp_path / "m.csv", columns, notes), notes


def test_names_belong_to_the_only_label_column_or_to_the_one_that_the_file_states(tmp_path):
    flat, columns = {"run": 1, "walk": 0}, ["label_class", "label_action"]
    assert read_names(tmp_path, json.dumps(flat), columns[1:]) == ({"label_action": flat}, [])
    found, (note,) = read_names(tmp_path, json.dumps(flat), columns)
    assert found == {} and "may be those of label_class or of label_action: write" in note
    named = {"label_action": flat}
    assert read_names(tmp_path, class_names.format_class_names(named, columns), columns) == (
        named,
        [],
    )
    text = class_names.format_class_names(named, columns[1:])
    assert json.loads(text) == flat  # without columns, as the manifest has only one


def test_numbers_of_a_task_are_read_from_a_file_with_several(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"label_a": {"run": 1}, "label_b": {"run": 2}}')
    assert class_names.read_class_names(path, "label_b") == {"run": 2}
    with pytest.raises(ValueError, match="names of label_a and label_b, but not of label_c"):
        class_names.read_class_names(path, "label_c")
    path.write_text('{"label_a": {"run": 1}}')
    assert class_names.read_class_names(path, "label_c") == {"run": 1}


def test_names_are_compared_for_the_column_that_the_files_state(tmp_path):
    for name, ids in (("a", {"run": 0}), ("b", {"run": 1})):
        text = "path,source,label_action,label_class\nx.mp4,s,0,0\n"
        (tmp_path / f"{name}.csv").write_text(text)
        (tmp_path / f"{name}.classes.json").write_text(json.dumps({"label_action": ids}))
    names = [f"{tmp_path}/{name}.csv" for name in "ab"]
    with pytest.raises(UserError, match="number the classes of action differently"):
        class_names.compare_manifests(names, ("class", "action"))
    (tmp_path / "b.classes.json").write_text('{"run": 1}')
    found, notes = class_names.compare_manifests(names, ("class", "action"))
    assert found == {"action": {"run": 0}} and len(notes) == 2 and "are not used" in notes[0]
