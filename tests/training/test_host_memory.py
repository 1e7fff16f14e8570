import platform
import subprocess
import sys
import types

import pytest

from invnext_jax.training import host_memory

# Prints the page faults of ten calls, each of which allocates a buffer of 42 MB.
_PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from invnext_jax.training import host_memory
if sys.argv[1] == "keep":
    assert host_memory.keep_freed_memory()
step = jax.jit(lambda x: jnp.sort(x @ x.T @ x))
x = jnp.ones((3240, 8))
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    step(x).block_until_ready()
start = count()
for _ in range(10):
    step(x).block_until_ready()
print((count() - start) // 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_memory_of_a_step_is_used_again():
    faults = {}
    for setting in ("keep", "default"):
        command = [sys.executable, "-c", _PROGRAM, setting]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        faults[setting] = int(result.stdout)
    assert faults["default"] > 1000
    assert faults["keep"] < faults["default"] / 2


@pytest.mark.parametrize(
    "platforms, modules, expected",
    [
        ("cpu", ("libtpu",), True),
        ("cuda,cpu", (), False),
        (None, (), True),
        (None, ("libtpu",), False),
        (None, ("jax_plugins",), False),
    ],
)
def test_the_allocator_is_changed_only_without_accelerators(
    platforms, modules, expected, monkeypatch
):
    monkeypatch.setattr(host_memory.importlib.metadata, "entry_points", lambda **_: ())
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", modules.__contains__)
    calls = []
    library = types.SimpleNamespace(mallopt=lambda *setting: calls.append(setting) or 1)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: library)
    config = types.SimpleNamespace(jax_platforms=platforms)
    monkeypatch.setattr(host_memory.jax, "config", config)
    assert host_memory.keep_freed_memory() == expected
    assert bool(calls) == expected
