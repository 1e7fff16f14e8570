"""Names of the columns of manifests, and a check for names that a user may have meant differently.

Only `start`, `end`, `record`, `path`, `source` and `label_<task>` are read. `INFORMATIVE` columns
are written by launch/prepare_data.py for the user.
"""

import difflib
import functools
import re
from collections.abc import Sequence

from absl import logging

from invnext_jax import sanitize
from invnext_jax.errors import UserError

LABEL_PREFIX = "label_"
READ = ("path", "source", "start", "end", "record")
INFORMATIVE = (
    *("duration", "frames", "width", "height", "fps", "codec", "rotation", "mirrored", "sar"),
    *("transfer", "flags", "original"),
)
# A column that limits the part of a video consists of one of these words and of `_UNIT_WORDS`.
_RANGE_WORDS = {
    "start": {"start", "starts", "begin", "begins", "beginning", "onset"},
    "end": {"end", "ends", "stop", "stops", "finish"},
}
_UNIT_WORDS = {
    *("t", "time", "times", "timestamp", "s", "sec", "secs", "second", "seconds", "ms", "msec"),
    *("frame", "frames", "clip", "segment", "video", "trim", "idx", "index"),
}


def check_columns(manifest: str, columns: Sequence[str]) -> None:
    """Checks the header of a manifest, and logs the columns that are not read.

    Raises:
        UserError: A column seems to contain labels, records, or the start or end of clips, but has
            another name than the one that is read.
    """
    others = [name for name in columns if name and not _is_known(name)]
    for name in others:
        meant = _find_meant(name)
        if meant.startswith(LABEL_PREFIX) or meant == "record":
            raise UserError(
                f"manifest {manifest} has a column {name!r}, which is not read: rename it to "
                f"{meant!r}, or to {'other_' + meant!r} to ignore it"
            )
        if meant and meant not in columns:
            raise UserError(
                f"manifest {manifest} has a column {name!r}, which is not read: rename it to "
                f"{meant!r} and give it in seconds if clips should be cut from this part of each "
                f"file, or rename it to {'original_' + meant!r} to use whole files"
            )
    if others:
        _warn_once(
            f"manifest {sanitize.redact_urls(manifest)}: columns that are not read: "
            f"{', '.join(map(_describe, others))}"
        )


def _is_known(name: str) -> bool:
    return name in READ or name in INFORMATIVE or name.startswith(LABEL_PREFIX)


def _find_meant(name: str) -> str:
    """Returns the name of the column that is read and has the meaning of `name`, or ""."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    if plain == "record" or (plain.startswith(LABEL_PREFIX) and plain != LABEL_PREFIX):
        return plain
    for meant, range_words in _RANGE_WORDS.items():
        if range_words & set(words) and set(words) <= range_words | _UNIT_WORDS:
            return meant
    return ""


def _describe(name: str) -> str:
    known = (*READ, f"{LABEL_PREFIX}<task>")
    plain = name.strip().lower()
    near = "label_<task>" if plain in ("label", "labels") else _find_meant(name)
    near = near or next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.75)), "")
    return f"{name!a} (similar to {near!r})" if near else f"{name!a}"


@functools.cache
def _warn_once(sentence: str) -> None:
    logging.warning("%s", sentence)  # manifests are read several times
