"""Ahead-of-time compilation of the step and diagnostics, and the persistent compilation cache."""

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from invnext_jax.training.optimizer import Schedule
from invnext_jax.training.state import TrainState
from invnext_jax.training.step import DiagnosticsFn, Metrics, StepFn, select_microbatch

_CACHE_BYTES = 8 * 2**30  # maximum size of the cache folder, enforced when a run starts


def enable_cache() -> None:
    """Enables JAX's compilation cache in `~/.cache/invnext_jax` or JAX_COMPILATION_CACHE_DIR.

    CPU programs are compiled for the instruction set of the machine, so each type of processor has
    a separate folder. If the user sets JAX_COMPILATION_CACHE_DIR, the size of the cache is not
    limited.
    If the folder cannot be written, the cache is disabled with a warning.
    """
    folder = jax.config.jax_compilation_cache_dir
    if folder and "://" in folder:
        return
    try:
        if not folder:
            caches = pathlib.Path.home() / ".cache" / "invnext_jax"
            prune_cache(caches, _CACHE_BYTES)
            folder = str(caches / f"jax-{jax.__version__}-{_cpu_fingerprint()}")
        _check_writable(pathlib.Path(folder))
    except (OSError, RuntimeError) as error:  # RuntimeError means that there is no home folder
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        where = f" in {folder}" if folder else ""
        logging.warning(
            "compiled programs are not cached%s: %s; to cache them, set "
            "JAX_COMPILATION_CACHE_DIR to a writable folder",
            where,
            reason,
        )
        folder = None
    jax.config.update("jax_compilation_cache_dir", folder)


def _check_writable(folder: pathlib.Path) -> None:
    """Checks that a folder is writable by creating it and a file in it.

    Raises:
      OSError: the folder or the file cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")
        file.flush()


def prune_cache(folder: pathlib.Path, limit: int) -> None:
    """Deletes the least recently used programs until the cache has at most `limit` bytes."""
    programs = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # other runs may delete files at the same time
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                programs.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = 0
    for _, size, path in sorted(programs, reverse=True):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()


def _cpu_fingerprint() -> str:
    """Returns a hash of the processor's model and instruction set."""
    text = platform.machine() + platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = {line for line in file if line.startswith(("flags", "Features", "model name"))}
        text += "".join(sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compile_step(
    step: StepFn,
    state: TrainState,
    frozen: Any,
    batch: Any,
    root_key: jax.Array,
    schedule: Schedule,
) -> StepFn:
    """Compiles the step before its first call. The state is donated and keeps its shardings.

    The state, the frozen parameters and the batch may be abstract arrays with shardings.

    Args:
      step: the output of `make_train_step`.
      state: the training state.
      frozen: parameters that are never trained.
      batch: dict of global arrays [b ...].
      root_key: the run's PRNG key, replicated.
      schedule: the learning-rate schedule, replicated.

    Returns:
      The compiled step. Calling it with other shapes raises an error instead of recompiling.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    metrics_sharding = root_key.sharding
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, metrics_sharding))
    return jitted.lower(state, frozen, batch, root_key, schedule).compile()


def compile_diagnostics(
    diagnostics: Callable[[Any, Any, dict[str, jax.Array], jax.Array], Metrics],
    state: TrainState,
    frozen: Any,
    batch: Any,
    root_key: jax.Array,
    microbatches: int = 1,
) -> DiagnosticsFn:
    """Compiles `diagnostics(params, frozen, batch, key)` as `f(state, frozen, batch, root_key)`.

    The arguments are those of `compile_step`. The diagnostics get the key of the step, so they use
    the same masks and noise. EMA targets are passed in `frozen`. If the batch is split into
    microbatches, the diagnostics use the first one.
    """

    def compute(
        params: Any, step: jax.Array, frozen: Any, batch: dict[str, jax.Array], root_key: jax.Array
    ) -> Metrics:
        key = jax.random.fold_in(root_key, step)
        return diagnostics(params, frozen, *select_microbatch(batch, key, 0, microbatches))

    jitted = jax.jit(compute, out_shardings=root_key.sharding)
    constants = {**frozen, **state.follow}
    compiled = jitted.lower(state.params, state.step, constants, batch, root_key).compile()

    def call(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], root_key: jax.Array
    ) -> Metrics:
        return compiled(state.params, state.step, {**frozen, **state.follow}, batch, root_key)

    call.out_info = compiled.out_info  # as a compiled step has it
    return call
