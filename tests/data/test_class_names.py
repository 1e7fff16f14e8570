"""Files of class names, and the label columns to which the names belong."""

import json

import pytest

from invnext_jax.data import class_names
from invnext_jax.errors import UserError

NESTED = '{"label_x": {"a": 0}, "b": 1}'


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


def read(tmp_path, content, columns):
    (tmp_path / "m.classes.json").write_text(content)
    notes = []
    return class_names.read_manifest_classes(tmp_path / "m.csv", columns, notes), notes


def test_names_belong_to_the_only_label_column_or_to_the_one_that_the_file_states(tmp_path):
    flat, columns = {"run": 1, "walk": 0}, ["label_class", "label_action"]
    assert read(tmp_path, json.dumps(flat), columns[1:]) == ({"label_action": flat}, [])
    found, (note,) = read(tmp_path, json.dumps(flat), columns)
    assert found == {} and "may be those of label_class or of label_action: write" in note
    named = {"label_action": flat}
    assert read(tmp_path, class_names.format_class_names(named, columns), columns) == (named, [])
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
