"""Files of class names."""

import pytest

from invnext_jax.data import class_names
from invnext_jax.errors import UserError


@pytest.mark.parametrize("content", ['{"a": -1}', '{"a": 3000000000}', "[" * 10**5, "\xff"])
def test_damaged_class_names_are_one_sentence(content, tmp_path):
    (tmp_path / "m.classes.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"m\.classes\.json cannot be read \("):
        class_names.read_manifest_classes(tmp_path / "m.csv")


def test_large_files_of_class_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(class_names, "MAX_NAMES_BYTES", 10)
    (tmp_path / "m.classes.json").write_text('["a", "b", "c"]')
    with pytest.raises(UserError, match="Larger than 10 bytes"):
        class_names.read_manifest_classes(tmp_path / "m.csv")
