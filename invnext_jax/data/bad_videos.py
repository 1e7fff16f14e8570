"""Counts of what a run reads and cannot read, and the list of bad files."""

import collections
import csv
import io
import os

from absl import logging

from invnext_jax.data.clips import BadClip
from invnext_jax.errors import UserError

MIN_TRIED = 100  # so many clips are tried before their share of bad ones can end a run
QUARANTINE = "quarantine.csv"


class BadVideoTracker:
    """Counts clips delivered and dropped, names each bad file once, and ends a run that is lost.

    A bad video counts as often as the clips that it should have given.

    Attributes:
        delivered: Clips let through.
        dropped: Clips dropped, a video that fails in two epochs counting twice.
        kinds: How many of them for each class of reasons.
        names: Reasons by path.
    """

    def __init__(self, *, on_bad: str = "drop", max_bad_share: float = 1.0):
        self.delivered = 0
        self.dropped = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.names: dict[str, str] = {}
        self._fail, self._max_share = on_bad == "fail", max_bad_share
        self._limit = MIN_TRIED
        self._file = None
        self._listed: set[str] = set()

    @classmethod
    def from_config(cls, data_config) -> "BadVideoTracker":
        """Follows `on_bad` and `max_bad_share` of `config.data`."""
        return cls(on_bad=data_config.on_bad, max_bad_share=data_config.max_bad_share)

    @property
    def fails(self) -> bool:
        """Whether the first bad video ends the run."""
        return self._fail

    def expect(self, videos: int) -> None:
        """Gives up on a data set without a good video only once all of its `videos` are tried."""
        self._limit = max(MIN_TRIED, videos)

    def list_in(self, workdir: str | os.PathLike) -> None:
        """Appends each bad file to `<workdir>/quarantine.csv`, unless it stands there already."""
        self._file = os.path.join(workdir, QUARANTINE)
        self._listed = _read_listed(self._file)

    def good(self, clips: int = 1) -> None:
        """Counts the clips of a video."""
        self.delivered += clips

    def bad(self, clip: BadClip, clips: int = 1) -> None:
        """Counts a video that should have given so many clips and gave none.

        Raises:
            UserError: It is the first one of a run that wants none, or one too many.
        """
        self.dropped += clips
        self.kinds[clip.kind] += clips
        if clip.path not in self.names:
            self.names[clip.path] = clip.reason
            logging.warning("video dropped (%s): %s", clip.kind, clip.reason)
            self._list(clip)
        if self._fail:
            raise UserError(
                f"bad video ({clip.kind}): {clip.reason}; mend the manifest, or set "
                "config.data.on_bad='drop'"
            )
        if not self.delivered and self.dropped >= self._limit:
            raise self.nothing_readable()
        tried = self.delivered + self.dropped
        if tried >= MIN_TRIED and self.dropped > self._max_share * tried:
            raise UserError(
                f"{self.dropped} of {tried} clips are bad, more than "
                f"config.data.max_bad_share={self._max_share}:\n{self.table()}"
            )

    def nothing_readable(self) -> UserError:
        """The error for a data set without a single good video."""
        reason = next(iter(self.names.values()))
        return UserError(
            f"no readable video among the first {self.dropped} clips, e.g. {reason}\n{self.table()}"
        )

    def gave_up(self, tried: int) -> UserError:
        """The error for one place in a batch for which `tried` videos in a row were bad."""
        return UserError(
            f"{tried} videos in a row are bad, after {self.delivered} good clips:\n" + self.table()
        )

    def table(self) -> str:
        """A line for each class of reasons, the most frequent first; "" if nothing is bad."""
        return "\n".join(f"{count:8d}  {kind}" for kind, count in self.kinds.most_common())

    def _list(self, clip: BadClip) -> None:
        if self._file is None or clip.path in self._listed:
            return
        self._listed.add(clip.path)
        try:
            self._append([clip.path, clip.kind])
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._file, error.strerror)

    def _append(self, row: list[str]) -> None:
        header = not os.path.exists(self._file)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerows([["path", "reason"]] * header + [row])
        with open(self._file, "a", newline="", encoding="utf-8") as file:
            file.write(text.getvalue())  # one write: no half row


def _read_listed(path: str) -> set[str]:
    """Paths in a quarantine file; a last line that was cut short is ended and left out."""
    if not os.path.exists(path):
        return set()
    with open(path, "r+", newline="", encoding="utf-8") as file:
        text = file.read()
        if text and not text.endswith("\n"):
            file.write("\n")
    whole = text[: text.rfind("\n") + 1]
    return {row[0] for row in csv.reader(io.StringIO(whole)) if row}
