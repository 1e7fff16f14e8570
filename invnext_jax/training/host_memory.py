"""Settings of the memory allocator of the C library for training on CPUs."""

import ctypes
import importlib.metadata
import importlib.util

import jax

# Parameters of mallopt, from malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process, if JAX can only use the CPU and the C library is glibc.

    XLA allocates all buffers of a CPU program again in every step. By default, glibc returns them
    to the kernel between steps, and the kernel clears their pages again: 37 % of the CPU time of a
    small step. Call it before JAX starts its threads, which keep the settings of their start.

    Returns:
      Whether the settings were changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not _has_only_cpus():
        return False
    settings = ((_TRIM_THRESHOLD, _NEVER_TRIM), (_MMAP_MAX, 0), (_ARENA_MAX, 1))
    return all(mallopt(parameter, value) for parameter, value in settings)


def _has_only_cpus() -> bool:
    """Returns whether `jax_platforms` is "cpu", or no package for other devices is installed."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    has_plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not has_plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
