"""Reads the commit of this package's git checkout, for the metadata of a run."""

import functools
import os
import pathlib
import subprocess

from absl import logging

_ROOT = pathlib.Path(__file__).parents[2]
_UNKNOWN = "?"  # appended if it is unknown whether tracked files are modified
# The checkout may belong to a different user, for example in a container or a shared folder. It is
# read without running its hooks or writing to it.
_OPTIONS = ("--no-optional-locks", "-c", "safe.directory=*", "-c", "core.fsmonitor=false")


@functools.cache
def read_git_hash(root: pathlib.Path = _ROOT) -> str:
    """Returns the commit hash of a checkout, or "" outside a checkout.

    A "+" is appended if tracked files are modified, and a "?" if this is unknown because git cannot
    read the checkout. If the hash cannot be read, a warning states the reason.

    Args:
      root: the folder that contains `.git`. By default, the one of this package.
    """
    if not os.path.exists(root / ".git"):
        return ""
    try:
        head = _run_git(root, "rev-parse", "HEAD")
        return head + ("+" if _run_git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    try:
        return _read_head(root) + _UNKNOWN
    except (OSError, ValueError):
        logging.warning("the git commit of %s is not recorded: %s", root, reason)
        return ""


def _run_git(root: pathlib.Path, *command: str) -> str:
    ended = subprocess.run(
        ["git", *_OPTIONS, "-C", str(root), *command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=10,
    )
    if ended.returncode:
        raise ValueError(f"git: {ended.stderr.strip().partition(chr(10))[0]}")
    return ended.stdout.strip()


def _read_head(root: pathlib.Path) -> str:
    """Reads the commit from the files of `.git`, without git."""
    folder = root / ".git"
    if os.path.isfile(folder):  # a worktree or a submodule
        folder = root / folder.read_text().removeprefix("gitdir:").strip()
    shared = folder
    if os.path.exists(folder / "commondir"):
        shared = folder / (folder / "commondir").read_text().strip()
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return _check_hash(head)
    name = head.removeprefix("ref:").strip()
    if os.path.isfile(shared / name):
        return _check_hash((shared / name).read_text().strip())
    for line in (shared / "packed-refs").read_text().splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return _check_hash(commit)
    raise ValueError(f"no commit found for {name}")


def _check_hash(text: str) -> str:
    if len(text) not in (40, 64):
        raise ValueError(f"{text[:64]!r} is not a commit")
    int(text, 16)
    return text
