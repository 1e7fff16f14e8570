"""Counts the good and bad videos of a run, and lists the bad files."""

import collections
import csv
import io
import os

from absl import logging

from invnext_jax.data.clips import BadClip
from invnext_jax.errors import UserError

MIN_TRIED = 100  # minimum number of clips before the share of bad ones can end a run
QUARANTINE = "quarantine.csv"


class BadVideoTracker:
    """Counts delivered and dropped clips, logs each bad file once, and limits the dropped share.

    A bad video counts once for each clip that was requested from it.

    Args:
        on_bad: "drop", or "fail" to raise an error at the first bad video.
        max_bad_share: Maximum share of dropped clips.

    Attributes:
        delivered: Number of good clips.
        dropped: Number of dropped clips; a video that fails in two epochs counts twice.
        kinds: Number of dropped clips for each class of reasons.
        reasons: Path of each bad file -> reason.
    """

    def __init__(self, *, on_bad: str = "drop", max_bad_share: float = 1.0):
        self.delivered = 0
        self.dropped = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.reasons: dict[str, str] = {}
        self.fail_on_bad, self._max_share = on_bad == "fail", max_bad_share
        self._max_bad_at_start = MIN_TRIED
        self._file = None
        self._listed: set[str] = set()

    @classmethod
    def from_config(cls, data_config) -> "BadVideoTracker":
        """Builds a tracker from `on_bad` and `max_bad_share` of `config.data`."""
        return cls(on_bad=data_config.on_bad, max_bad_share=data_config.max_bad_share)

    def expect_videos(self, count: int) -> None:
        """Delays the error for a data set without good videos until `count` videos were tried."""
        self._max_bad_at_start = max(MIN_TRIED, count)

    def write_quarantine(self, workdir: str | os.PathLike) -> None:
        """Appends each bad file to `<workdir>/quarantine.csv`, unless it is already listed."""
        self._file = os.path.join(workdir, QUARANTINE)
        self._listed = _read_listed(self._file)

    def count_good(self, clips: int = 1) -> None:
        """Counts the clips of a good video."""
        self.delivered += clips

    def count_bad(self, bad_clip: BadClip, clips: int = 1) -> None:
        """Counts, logs and lists a bad video.

        Args:
            bad_clip: The video and the reason.
            clips: Number of clips that were requested from it.

        Raises:
            UserError: `on_bad` is "fail", or too many videos are bad.
        """
        self.dropped += clips
        self.kinds[bad_clip.kind] += clips
        if bad_clip.path not in self.reasons:
            self.reasons[bad_clip.path] = bad_clip.reason
            logging.warning("video dropped (%s): %s", bad_clip.kind, bad_clip.reason)
            self._list(bad_clip)
        if self.fail_on_bad:
            raise UserError(
                f"bad video ({bad_clip.kind}): {bad_clip.reason}; fix the manifest, or set "
                "config.data.on_bad='drop'"
            )
        if not self.delivered and self.dropped >= self._max_bad_at_start:
            raise self.no_good_video_error()
        tried = self.delivered + self.dropped
        if tried >= MIN_TRIED and self.dropped > self._max_share * tried:
            raise UserError(
                f"{self.dropped} of {tried} clips are bad, more than "
                f"config.data.max_bad_share={self._max_share}:\n{self.table()}"
            )

    def no_good_video_error(self) -> UserError:
        """Returns the error for a data set without a good video."""
        reason = next(iter(self.reasons.values()))
        return UserError(
            f"no readable video among the first {self.dropped} clips, e.g. {reason}\n{self.table()}"
        )

    def too_many_tries_error(self, tries: int) -> UserError:
        """Returns the error for a batch position where `tries` consecutive videos were bad."""
        return UserError(
            f"{tries} videos in a row are bad, after {self.delivered} good clips:\n" + self.table()
        )

    def table(self) -> str:
        """Formats the count of each class of reasons in descending order; "" if there are none."""
        return "\n".join(f"{count:8d}  {kind}" for kind, count in self.kinds.most_common())

    def _list(self, bad_clip: BadClip) -> None:
        if self._file is None or bad_clip.path in self._listed:
            return
        self._listed.add(bad_clip.path)
        try:
            self._append([bad_clip.path, bad_clip.kind])
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._file, error.strerror)

    def _append(self, row: list[str]) -> None:
        has_header = os.path.exists(self._file)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([row] if has_header else [["path", "reason"], row])
        with open(self._file, "a", newline="", encoding="utf-8") as file:
            file.write(text.getvalue())  # a single write avoids a partial row


def _read_listed(path: str) -> set[str]:
    """Reads the paths of a quarantine file.

    A truncated last line is ignored, and a newline is appended to it.
    """
    if not os.path.exists(path):
        return set()
    with open(path, "r+", newline="", encoding="utf-8") as file:
        text = file.read()
        if text and not text.endswith("\n"):
            file.write("\n")
    complete = text[: text.rfind("\n") + 1]
    return {row[0] for row in csv.reader(io.StringIO(complete)) if row}
