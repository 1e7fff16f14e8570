"""Compares the digests of sampled videos in the metadata of runs.

The digests show that files behind an unchanged manifest were replaced. Only videos that could be
read at both times are compared. Checkpoints of older versions have no digests.
"""

from collections.abc import Mapping
from typing import Any

from invnext_jax.errors import UserError

_FIELD = "video_digests"


def check_restored(folder: Any, saved: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Checks that a run reads the same videos as when it saved a checkpoint.

    Args:
        folder: the checkpoint's folder, for the message.
        saved: the metadata of the checkpoint, see `run_metadata.describe_run`.
        record: the metadata of this run, with the same manifests.

    Raises:
        UserError: a video differs.
    """
    if replaced := find_replaced(saved, record):
        others = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise UserError(
            f"the video {replaced[0]}{others} of {len(record[_FIELD])} that were compared changed "
            f"after the checkpoint {folder} was saved; restore the files, or choose another "
            "--workdir and set config.init_from to this run"
        )


def check_hosts(first: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Checks that a process has the same videos as process 0, whose metadata is `first`.

    Raises:
        UserError: a video differs.
    """
    if replaced := find_replaced(first, record):
        raise UserError(
            f"the video {replaced[0]} of this process differs from that of process 0; copy the "
            "same files to all hosts"
        )


def find_replaced(saved: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Returns the paths of the videos or shards whose contents differ, quoted for messages."""
    digests = {entry["row"]: entry["digest"] for entry in saved.get(_FIELD, ())}
    return [
        ascii(entry["path"])
        for entry in record[_FIELD]
        if entry["digest"] and digests.get(entry["row"], "") not in ("", entry["digest"])
    ]


def describe_unreadable(record: Mapping[str, Any]) -> str:
    """Returns a sentence about the videos that could not be read; "" if there are none."""
    unreadable = [ascii(entry["path"]) for entry in record[_FIELD] if not entry["digest"]]
    if not unreadable:
        return ""
    return (
        f"{len(unreadable)} of the {len(record[_FIELD])} videos that identify the data cannot be "
        f"read, such as {unreadable[0]}. Resumed runs do not compare them"
    )
