"""Checks which flags of `launch/sweep.py` have an effect together and agree with the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from invnext_jax.errors import UserError

if TYPE_CHECKING:  # imports JAX; errors of flags do not wait for it
    from invnext_jax.sweeps.sweep_folder import SweepFolder

# Flags that replace the run of the sweep by another command, and the flags that the command reads.
# A name that ends in a dot means all flags that start with it. A dry run reads all flags of a
# run, so that --dry_run can be added to a command.
_ACTIONS = {
    "status": (),
    "report": ("baseline",),
    "cancel": ("executor", "slurm."),
    "collect": (),
    "dry_run": None,
}
_OF_FILES = ("out", "cluster.")
_OF_SYSTEM = {
    "cluster.image": "jobset",
    "cluster.node_selector": "jobset",
    "cluster.infra": "skypilot",
}
WRITES_FILES = ("skypilot", "jobset")  # values of --executor


def check_flags(given: Sequence[str], executor: str) -> None:
    """Checks that all flags of a command line have an effect.

    Args:
      given: names of the flags, without switches that are False.
      executor: value of --executor.

    Raises:
      UserError: a flag has no effect, or two commands are chosen.
    """
    actions = [name for name in (*_ACTIONS, "retry_failed") if name in given]
    if len(actions) > 1:
        raise UserError(
            f"--{actions[0]} and --{actions[1]} are different commands: choose one of them"
        )
    for name in given:
        if reason := _unused_reason(name, next(iter(actions), ""), executor):
            raise UserError(f"--{name} has no effect {reason}")


def _unused_reason(name: str, action: str, executor: str) -> str:
    """Returns why a flag has no effect, as the end of a sentence; "" if it has an effect."""
    if name == "workdir" or (name == action and name in _ACTIONS):
        return ""
    if name == "baseline" and action != "report":
        return "without --report: add it"
    read = _ACTIONS.get(action)
    if read is not None:
        return "" if _is_in(name, read) else f"with --{action}: remove one of them"
    if name.startswith("slurm.") and executor != "slurm":
        return f"with --executor={executor}: set --executor=slurm"
    if _is_in(name, _OF_FILES) and executor not in WRITES_FILES:
        return f"with --executor={executor}: set --executor=skypilot or --executor=jobset"
    if executor != _OF_SYSTEM.get(name, executor):
        return f"with --executor={executor}: it is for --executor={_OF_SYSTEM[name]}"
    if name in ("max_jobs", "retry_failed") and executor in WRITES_FILES:
        return f"with --executor={executor}, whose jobs are started by another tool: remove it"
    if name == "device" and executor == "local" and action != "dry_run":
        return "for jobs on this machine, whose GPUs are found: add --dry_run, or remove it"
    return ""


def _is_in(name: str, names: Sequence[str]) -> bool:
    return any(name == one or (one.endswith(".") and name.startswith(one)) for one in names)


def check_executor(
    folder: SweepFolder, executor: str, *, is_given: bool = False, has_config: bool = False
) -> None:
    """Checks that a sweep continues on the system on which it was started.

    Args:
      folder: the folder of the sweep, which need not have one yet.
      executor: value of --executor.
      is_given: whether the command line sets --executor.
      has_config: whether it sets --config. With both, the jobs move to the other system and get the
        resources that the command line gives.

    Raises:
      UserError: the sweep was started on another system.
    """
    if (is_given and has_config) or not folder.exists():
        return
    try:
        recorded = folder.read_sweep().executor
    except UserError:
        if has_config:  # replaces a damaged description
            return
        raise
    if recorded not in ("", executor):
        raise UserError(
            f"the sweep in {folder.path} was started with --executor={recorded}: repeat this flag "
            f"and its options, or set --executor={executor} and --config to run the jobs elsewhere "
            "from now on"
        )
