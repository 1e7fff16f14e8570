"""Class names stored next to the manifest of shards."""

import json

from etils import epath

from invnext_jax.dataset_prep import shard_metadata


def test_class_names_are_copied_if_all_manifests_have_names_that_agree(tmp_path, caplog):
    names = {"a": {"run": 0, "jump": 1}, "b": {"jump": 1, "climb": 2}, "c": {"climb": 0}, "d": None}
    for name, ids in names.items():
        (tmp_path / f"{name}.csv").write_text("path,source,label_class\n")
        if ids:
            (tmp_path / f"{name}.classes.json").write_text(json.dumps(ids))
    out = epath.Path(tmp_path / "train.classes.json")
    for manifests in ("ac", "ad", "d"):
        out.write_text("{}")  # of an earlier command
        shard_metadata.copy_class_names([f"{tmp_path}/{name}.csv" for name in manifests], out)
        assert not out.exists()
    assert "number classes differently" in caplog.text
    shard_metadata.copy_class_names([f"{tmp_path}/{name}.csv" for name in "ab"], out)
    assert json.loads(out.read_text()) == {"run": 0, "jump": 1, "climb": 2}


def test_class_names_of_other_columns_are_kept_apart(tmp_path):
    columns = {"a": "label_x", "b": "label_y", "c": "label_x,label_y"}
    for name, labels in columns.items():
        (tmp_path / f"{name}.csv").write_text(f"path,source,{labels}\n")
        (tmp_path / f"{name}.classes.json").write_text(json.dumps({name: 0}))
    out = epath.Path(tmp_path / "train.classes.json")
    shard_metadata.copy_class_names([f"{tmp_path}/{name}.csv" for name in "abc"], out)
    assert not out.exists()  # the column of the names of c is unknown
    shard_metadata.copy_class_names([f"{tmp_path}/{name}.csv" for name in "ab"], out)
    assert json.loads(out.read_text()) == {"label_x": {"a": 0}, "label_y": {"b": 0}}
