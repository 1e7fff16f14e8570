"""References of the parity tests: values that PyTorch and transformers compute.

A parity test asks for its reference with a function of both packages:

    expected = reference(lambda hf: numpy_of(hf.torch.nn.functional.gelu(hf.torch.ones(3))))

By default, the function is not called, and the value that is stored in tests/fixtures/parity is
returned, so that neither package is needed. With `pytest --live -m parity` (`make test-parity`),
the function is called, and its value is compared with the stored one and returned.
`--write-references` (`make references`) stores the values instead of comparing them.
"""

import copy
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from golden_cases import assert_near
from reference_models import unfold_names, write_folder
from safetensors.numpy import load, save

FOLDER = Path(__file__).parents[2] / "fixtures" / "parity"
TOLERANCE = 2e-5  # of live values to stored ones, relative to the largest value
FIXTURES = {"reference", "references"}  # a test that uses one of them has the marker `parity`


def pytest_addoption(parser):
    group = parser.getgroup("parity")
    group.addoption("--live", action="store_true", help="compute references with PyTorch")
    group.addoption("--write-references", action="store_true", help="store what --live computes")


def pytest_collection_modifyitems(items):
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.parity)


@functools.cache
def import_transformers():
    """Returns PyTorch and transformers as `.torch` and `.models`, with downloads disabled."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import torch
        import transformers
    except ImportError as error:
        pytest.skip(f"--live needs PyTorch and transformers; `make test-parity` has them: {error}")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return SimpleNamespace(torch=torch, models=transformers)


def numpy_of(tensor):
    """Converts a tensor to an array."""
    return np.asarray(tensor.detach().numpy())


def is_arrays(value):
    return isinstance(value, dict) and all(isinstance(x, np.ndarray) for x in value.values())


def without_version(value):
    """Removes the version of transformers from values of JSON."""
    if isinstance(value, dict):
        items = value.items()
        return {k: without_version(x) for k, x in items if k != "transformers_version"}
    return [without_version(x) for x in value] if isinstance(value, list) else value


def format_json(value, depth=2):
    """Writes a line for each entry of the first two levels."""
    if depth == 0 or not isinstance(value, dict):
        return json.dumps(value)
    lines = [f"{json.dumps(key)}: {format_json(x, depth - 1)}" for key, x in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


class References:
    """Stored or live values by key. The first part of a key is the name of the file of its arrays.

    A value is an array, a dictionary of arrays, or a value of JSON.
    """

    def __init__(self, *, live=False, write=False):
        self.live, self.write = live or write, write
        path = FOLDER / "manifest.json"
        manifest = json.loads(path.read_text()) if path.exists() else {"files": {}, "values": {}}
        self.hashes, self.values = manifest["files"], manifest["values"]
        self.arrays = {}

    def get(self, key, compute):
        """Returns a copy of the value of a key. `compute` is a function of both packages."""
        if not self.live:
            return copy.deepcopy(self._read(key))
        hf = import_transformers()
        with hf.torch.no_grad():
            value = compute(hf)
        if not (isinstance(value, np.ndarray) or is_arrays(value)):
            value = without_version(json.loads(json.dumps(value)))
        if self.write:
            self._store(key, value)
        else:
            self._compare(value, self._read(key))
        return copy.deepcopy(value)

    def save(self, model, folder, dtypes=("float32",), shard_bytes=None):
        """Writes the files of a `reference_models.Model` and returns the folder.

        The weights are cast to each of `dtypes`. With `--live`, transformers reads these weights
        and writes the files.
        """
        about = self.get(f"models/{model.key}", model.describe)
        tensors = model.draw(unfold_names(about["tensors"]))
        for dtype in () if self.live else dtypes:
            tensors = {name: x.astype(dtype) for name, x in tensors.items()}
        write_folder(folder, about["config"], tensors, None if self.live else shard_bytes)
        if self.live:
            hf = import_transformers()
            loaded = model.load(hf, folder)
            for dtype in dtypes:
                loaded = loaded.to(getattr(hf.torch, dtype))
            (folder / "model.safetensors").unlink()
            loaded.save_pretrained(folder, max_shard_size=shard_bytes or 2**40)
        return folder

    def save_tokenizer(self, name, make, folder):
        """Writes the files of a tokenizer that `make` returns, and returns the folder."""

        def compute(hf):
            with tempfile.TemporaryDirectory() as saved:
                make(hf).save_pretrained(saved)
                return {path.name: path.read_text() for path in sorted(Path(saved).iterdir())}

        for file, text in self.get(f"tokenizers/{name}", compute).items():
            (folder / file).write_text(text)
        return folder

    def _arrays_of(self, stem):
        if stem not in self.arrays:
            path = FOLDER / f"{stem}.safetensors"
            data = path.read_bytes() if path.exists() else None
            if data and hashlib.sha256(data).hexdigest() != self.hashes[path.name]:
                raise ValueError(f"{path} differs from its hash in manifest.json")
            self.arrays[stem] = load(data) if data else {}
        return self.arrays[stem]

    def _read(self, key):
        if key in self.values:
            return self.values[key]
        arrays = self._arrays_of(key.partition("/")[0])
        if key in arrays:
            return arrays[key]
        found = {k.removeprefix(f"{key}/"): x for k, x in arrays.items() if k.startswith(f"{key}/")}
        assert found, f"tests/fixtures/parity has no {key!r}; `make references` writes it"
        return found

    def _store(self, key, value):
        arrays = self._arrays_of(key.partition("/")[0])
        if isinstance(value, np.ndarray):
            arrays[key] = np.asarray(value, order="C")
        elif is_arrays(value):
            arrays |= {f"{key}/{name}": np.asarray(x, order="C") for name, x in value.items()}
        else:
            self.values[key] = value

    def _compare(self, value, stored):
        if isinstance(value, np.ndarray):
            assert_near(value, stored, TOLERANCE)
        elif is_arrays(value):
            assert value.keys() == stored.keys()
            for name, array in value.items():
                assert_near(array, stored[name], TOLERANCE)
        else:
            assert value == stored

    def close(self):
        """Writes new values, the versions of the packages, and the hashes of all files."""
        if not self.write:
            return
        hf = import_transformers()
        FOLDER.mkdir(parents=True, exist_ok=True)
        for stem, arrays in self.arrays.items():
            if arrays:
                (FOLDER / f"{stem}.safetensors").write_bytes(save(arrays))
        files = sorted(FOLDER.glob("*.safetensors"))
        manifest = {
            "torch": hf.torch.__version__,
            "transformers": hf.models.__version__,
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
            "values": dict(sorted(self.values.items())),
        }
        (FOLDER / "manifest.json").write_text(format_json(manifest))


@pytest.fixture(scope="session")
def references(pytestconfig):
    """References by key. `reference` is simpler, but only for one test function."""
    live, write = (pytestconfig.getoption(name) for name in ("live", "write_references"))
    if write and "PYTEST_XDIST_WORKER" in os.environ:
        raise pytest.UsageError("--write-references needs one process: remove -n")
    found = References(live=live, write=write)
    if found.live:
        import_transformers()
    yield found
    found.close()


@pytest.fixture
def reference(references, request):
    """Returns a function of (compute, name=""), which gets a reference of this test."""
    test = f"{request.path.stem}/{request.node.name}"
    return lambda compute, name="": references.get(f"{test} {name}".rstrip(), compute)
