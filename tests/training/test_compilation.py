import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invnext_jax.training import compilation, optimizer
from invnext_jax.training.state import TrainState
from invnext_jax.training.step import make_train_step

CONSTANT = jax.tree_util.Partial(lambda _: 0.1)


@pytest.fixture
def arguments():
    step, skipped, in_row = (jnp.array(0, jnp.int32) for _ in range(3))  # separate buffers
    params = {"w": jnp.ones(3)}
    state = TrainState(step, params, optax.sgd(0.1).init(params), skipped, in_row)
    return state, {}, {"x": jnp.ones((2, 3))}, jax.random.key(0)


def loss_fn(params, frozen, batch, key):
    return jnp.mean(batch["x"] @ params["w"]), {}


def test_compiled_step_donates_its_state(arguments):
    train_step = make_train_step(loss_fn, optimizer.update_if_finite(optax.sgd(0.1)))
    compiled = compilation.compile_step(train_step, *arguments, CONSTANT)
    state, measured = compiled(*arguments, CONSTANT)
    assert float(measured["loss"]) == 3.0
    assert arguments[0].params["w"].is_deleted()
    assert not state.params["w"].is_deleted()


def test_compiled_step_raises_on_another_batch_size(arguments):
    train_step = make_train_step(loss_fn, optimizer.update_if_finite(optax.sgd(0.1)))
    compiled = compilation.compile_step(train_step, *arguments, CONSTANT)
    state, frozen, _, key = arguments
    with pytest.raises(TypeError):
        compiled(state, frozen, {"x": jnp.ones((4, 3))}, key, CONSTANT)


def test_diagnostics_use_the_key_of_the_step(arguments):
    def diagnostics(params, frozen, batch, key):
        return {"drawn": jax.random.uniform(key)}

    state, frozen, batch, key = arguments
    measure = compilation.compile_diagnostics(diagnostics, *arguments)
    drawn = measure(state, frozen, batch, key)["drawn"]
    np.testing.assert_array_equal(drawn, jax.random.uniform(jax.random.fold_in(key, 0)))
    assert not state.params["w"].is_deleted()


def test_cache_folder_is_in_the_home_folder_unless_configured(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        compilation.enable_cache()
        assert jax.config.jax_compilation_cache_dir == before
        jax.config.update("jax_compilation_cache_dir", None)
        compilation.enable_cache()
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path / ".cache/invnext_jax"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_prune_cache_deletes_the_least_recently_used_programs(tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        folder = tmp_path / f"jax-{age}"
        folder.mkdir()
        (folder / name).write_bytes(b"0" * 100)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    compilation.prune_cache(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["middle", "new"]
    compilation.prune_cache(tmp_path / "missing", 0)


@pytest.fixture
def cache_folder():
    """Unsets JAX's cache folder during a test."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_without_a_home_folder_there_is_one_warning_and_no_cache(cache_folder, monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation.pathlib.Path, "home", no_home)
    with caplog.at_level("WARNING"):
        compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert [record.getMessage() for record in caplog.records] == [
        "compiled programs are not cached: Could not determine home directory; to cache them, set "
        "JAX_COMPILATION_CACHE_DIR to a writable folder"
    ]


@pytest.mark.parametrize("given", [True, False])
def test_a_cache_that_cannot_be_written_is_one_warning_and_no_cache(
    given, cache_folder, monkeypatch, caplog, tmp_path
):
    file = tmp_path / "file"  # a folder cannot be created below a file, not even by root
    file.touch()
    if given:
        jax.config.update("jax_compilation_cache_dir", str(file / "cache"))
    monkeypatch.setattr(compilation.pathlib.Path, "home", lambda: file)
    with caplog.at_level("WARNING"):
        compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert len(caplog.records) == 1
    assert f"not cached in {file}" in caplog.text and "Not a directory" in caplog.text
