"""Tables of a run's parameters, made by `clu.parameter_overview`."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
from absl import logging
from clu import parameter_overview

from invnext_jax import atomic_file
from invnext_jax.multihost.distributed import log_on_process_0

FILE = "parameters.txt"


def report_parameters(
    workdir: str | pathlib.Path,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    untrained: Collection[str] = (),
) -> None:
    """Logs the size of each top-level group and writes all arrays to `<workdir>/parameters.txt`.

    Only process 0 logs and writes. If the file cannot be written, a warning is logged.

    Args:
      workdir: the run's folder.
      params: the parameters of the model, as arrays with shardings.
      frozen: parameters of frozen networks, as arrays with shardings.
      untrained: groups of `params` that the optimizer does not update. They count as frozen.
    """
    params, frozen = split_trained(params, frozen, untrained)
    for line in format_group_sizes(params, frozen):
        log_on_process_0(line)
    if jax.process_index() != 0:
        return
    path = pathlib.Path(workdir) / FILE
    try:
        atomic_file.write_text(path, format_parameter_table(params, frozen))
    except OSError as error:
        logging.warning("%s cannot be written: %s", path, error.strerror)


def split_trained(
    params: Mapping[str, Any], frozen: Mapping[str, Any], untrained: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the parameters into trained and frozen groups.

    Args:
      params: the parameters of the model, by group.
      frozen: parameters of frozen networks, by group.
      untrained: groups of `params` that the optimizer does not update.
    """
    trained = {name: tree for name, tree in params.items() if name not in untrained}
    return trained, {name: params[name] for name in params if name in untrained} | {**frozen}


def format_group_sizes(params: Mapping[str, Any], frozen: Mapping[str, Any]) -> list[str]:
    """Returns one line with group sizes for the trained and one for the frozen parameters."""
    lines = []
    for kind, tree in (("trained", params), ("frozen", frozen)):
        if tree:
            sizes = {name: _count_millions(group) for name, group in tree.items()}
            groups = ", ".join(f"{name} {size:.2f} M" for name, size in sizes.items())
            lines.append(f"{kind} parameters: {groups}; {sum(sizes.values()):.2f} M in all")
    return lines


def format_parameter_table(params: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    """Returns a table of the name, shape, dtype, size and sharding of every array."""
    parts = []
    for kind, tree in (("Trained", params), ("Frozen", frozen)):
        table = parameter_overview.get_parameter_overview(tree, include_stats="sharding")
        parts.append(f"{kind} parameters\n{table}\n")
    return "\n".join(parts)


def _count_millions(tree: Any) -> float:
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6
