"""The stored references of the parity tests, and how they are compared with live ones."""

import contextlib
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parity
import pytest
from reference_models import fold_names, unfold_names

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(monkeypatch, tmp_path):
    """Makes stores of a folder of this test, with empty packages."""
    torch = SimpleNamespace(__version__="2", no_grad=contextlib.nullcontext)
    hf = SimpleNamespace(torch=torch, models=SimpleNamespace(__version__="5"))
    monkeypatch.setattr(parity, "FOLDER", tmp_path)
    monkeypatch.setattr(parity, "import_transformers", lambda: hf)
    return parity.References


def test_files_and_versions_are_those_of_the_manifest():
    manifest = json.loads((parity.FOLDER / "manifest.json").read_text())
    files = parity.FOLDER.glob("*.safetensors")
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert found == manifest["files"]
    makefile = (ROOT / "Makefile").read_text()
    for name in ("torch", "transformers"):
        pinned = re.search(rf"^{name.upper()} \?= (\S+)$", makefile, re.M)[1]
        assert manifest[name].partition("+")[0] == pinned


def test_stored_values_are_returned_and_live_ones_compared(store):
    values = {
        "a/array": np.float32([1, 2]),
        "a/two": {"x": np.eye(2), "y": np.array(3.0)},
        "b": [1],
    }
    others = {"a/array": np.float32([1, 2.001]), "a/two": {"x": np.eye(2)}, "b": [2]}
    writing = store(write=True)
    for key in values:
        writing.get(key, lambda _, key=key: values[key])
    writing.close()
    for key in values:
        np.testing.assert_equal(store().get(key, compute=None), values[key])
        store(live=True).get(key, lambda _, key=key: values[key])
        with pytest.raises(AssertionError):
            store(live=True).get(key, lambda _, key=key: others[key])
    with pytest.raises(AssertionError, match="has no 'c'; `make references` writes it"):
        store().get("c", compute=None)


def test_names_of_layers_are_joined():
    shapes = {f"layers.{i}.bias": (3,) for i in range(1, 4)} | {"layers.0.norm": (2,), "x": ()}
    folded = fold_names(shapes)
    assert folded == {"layers.{1..3}.bias": [3], "layers.0.norm": [2], "x": []}
    assert unfold_names(folded) == shapes
