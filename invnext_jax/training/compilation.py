"""Compiling ahead of the first call, and keeping what was compiled between runs."""

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
from collections.abc import Callable
from typing import Any

import jax

from invnext_jax.training.state import TrainState
from invnext_jax.training.step import MeasureFn, Metrics, StepFn, take_microbatch

_CACHE_BYTES = 8 * 2**30  # what the folder may hold when a run starts


def enable_cache() -> None:
    """Keeps compiled programs in `~/.cache/invnext_jax`, or where JAX_COMPILATION_CACHE_DIR says.

    CPU programs use the instructions of the machine that made them, so each kind of processor has
    a folder of its own. A folder that the user names is the user's: its size is not limited here.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    caches = pathlib.Path.home() / ".cache" / "invnext_jax"
    prune_cache(caches, _CACHE_BYTES)
    folder = caches / f"jax-{jax.__version__}-{_processor()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))


def prune_cache(folder: pathlib.Path, limit: int) -> None:
    """Deletes the programs that were not used for longest, until the rest has `limit` bytes."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another run may be at it too
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                found.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()


def _processor() -> str:
    text = platform.machine() + platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            kept = {line for line in file if line.startswith(("flags", "Features", "model name"))}
        text += "".join(sorted(kept))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compile_step(
    step: StepFn, state: TrainState, frozen: Any, batch: Any, root_key: jax.Array
) -> StepFn:
    """Compiles the step ahead of its first call, the state donated and its layout kept.

    Args:
        step: what `make_train_step` gave.
        state: the state, or its abstract tree with shardings; so are `frozen` and `batch`.
        frozen: parameters that are never trained.
        batch: global arrays [b ...].
        root_key: PRNG key, replicated.

    Returns:
        The compiled step; it refuses arguments of other shapes instead of compiling again.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    metrics_sharding = root_key.sharding
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, metrics_sharding))
    return jitted.lower(state, frozen, batch, root_key).compile()


def compile_diagnostics(
    diagnostics: Callable[[Any, Any, dict[str, jax.Array], jax.Array], Metrics],
    state: TrainState,
    frozen: Any,
    batch: Any,
    root_key: jax.Array,
    parts: int = 1,
) -> MeasureFn:
    """Compiles `diagnostics(params, frozen, batch, key)`, called with the state and the root key.

    Its arguments are those of `compile_step`; it draws from the same key as the step, so that it
    sees the masks and noise of the step that it explains. What follows the parameters counts as
    frozen. Of a batch that is taken in several `parts`, it sees the first.
    """

    def measure(
        params: Any, step: jax.Array, frozen: Any, batch: dict[str, jax.Array], root_key: jax.Array
    ) -> Metrics:
        key = jax.random.fold_in(root_key, step)
        return diagnostics(params, frozen, *take_microbatch(batch, key, 0, parts))

    jitted = jax.jit(measure, out_shardings=root_key.sharding)
    seen = {**frozen, **state.follow}
    compiled = jitted.lower(state.params, state.step, seen, batch, root_key).compile()

    def call(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], root_key: jax.Array
    ) -> Metrics:
        return compiled(state.params, state.step, {**frozen, **state.follow}, batch, root_key)

    return call
