"""Counts the good, short and bad videos of a run, and lists the bad files."""

import collections
import os
from typing import BinaryIO

from absl import logging

from invnext_jax import csv_text, file_lock, sanitize
from invnext_jax.data.clips import BadClip
from invnext_jax.errors import UserError

MIN_TRIED = 100  # number of clips before the share of bad clips can end a run
QUARANTINE = "quarantine.csv"
STALLED = "stalled read"  # the storage does not deliver the file; the file itself may be intact
# Kinds that depend on the state of the machine: a later read of the same video may succeed.
TRANSIENT_KINDS = (STALLED, "unreadable", "time limit", "worker died")


class BadVideoTracker:
    """Counts delivered and dropped clips, logs each bad file once, and limits the dropped share.

    A bad video is counted once per clip requested from it.

    Args:
      on_bad: "drop" to replace bad videos, or "fail" to raise an error at the first one.
      max_bad_share: Maximum share of dropped clips.

    Attributes:
      delivered: Number of good clips.
      short: Number of good clips of videos with fewer frames than a clip can span.
      dropped: Number of dropped clips; a video that fails in two epochs counts twice. Clips of
          stalled reads are included, but the limits ignore them.
      kinds: Number of dropped clips for each kind of reason.
      reasons: Path of each bad file -> reason.
    """

    def __init__(self, *, on_bad: str = "drop", max_bad_share: float = 1.0):
        self.delivered = 0
        self.short = 0
        self.dropped = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.reasons: dict[str, str] = {}
        self.fail_on_bad, self._max_share = on_bad == "fail", max_bad_share
        self._max_bad_at_start = MIN_TRIED
        self._stalled = 0
        self._quarantine: _QuarantineFile | None = None

    @classmethod
    def from_config(cls, data_config) -> "BadVideoTracker":
        """Builds a tracker from `on_bad` and `max_bad_share` of `config.data`."""
        return cls(on_bad=data_config.on_bad, max_bad_share=data_config.max_bad_share)

    def expect_videos(self, count: int) -> None:
        """Sets how many videos are tried before a data set counts as having no good video."""
        self._max_bad_at_start = max(MIN_TRIED, count)

    def write_quarantine(self, workdir: str | os.PathLike) -> None:
        """Appends each bad file to `<workdir>/quarantine.csv`, unless it is already listed.

        Several processes may write to the same file.

        Raises:
          UserError: The file exists and cannot be opened for writing.
        """
        path = os.path.join(workdir, QUARANTINE)
        try:
            self._quarantine = _QuarantineFile(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; remove it") from error

    def count_good(self, clips: int = 1) -> None:
        """Counts the clips of a good video."""
        self.delivered += clips

    def count_short(self, name: str, missing: int, clips: int = 1) -> None:
        """Counts good clips of a video that lacks `missing` frames. Logs the first such video."""
        if not self.short:
            logging.warning(
                "%s has %d frames fewer than a clip can span, so its clips repeat frames; other "
                "videos with too few frames are counted but not logged",
                name,
                missing,
            )
        self.short += clips

    def count_bad(self, bad_clip: BadClip, clips: int = 1) -> None:
        """Counts and logs a bad video, and adds it to the list of bad files.

        Args:
          bad_clip: The video and the reason.
          clips: Number of clips that were requested from the video.

        Raises:
          UserError: `on_bad` is "fail", or too many videos are bad.
        """
        bad_clip = bad_clip._replace(reason=sanitize.shorten(bad_clip.reason))
        self.dropped += clips
        self.kinds[bad_clip.kind] += clips
        self._stalled += clips if bad_clip.kind == STALLED else 0
        if bad_clip.path not in self.reasons:
            self.reasons[bad_clip.path] = bad_clip.reason
            logging.warning("video dropped (%s): %s", bad_clip.kind, bad_clip.reason)
            if self._quarantine is not None and bad_clip.kind != STALLED:
                self._quarantine.add(bad_clip)
        if self.fail_on_bad:
            raise UserError(
                f"bad video ({bad_clip.kind}): {bad_clip.reason}; fix the manifest, or set "
                "config.data.on_bad='drop'"
            )
        bad = self.dropped - self._stalled
        if not self.delivered and bad >= self._max_bad_at_start:
            raise self.no_good_video_error()
        tried = self.delivered + bad
        if tried >= MIN_TRIED and bad > self._max_share * tried:
            raise UserError(
                f"{bad} of {tried} clips are bad, more than "
                f"config.data.max_bad_share={self._max_share}:",
                *self._table_lines(),
            )

    @property
    def transient(self) -> dict[str, int]:
        """Number of clips dropped for reasons that may be temporary, by kind."""
        return {kind: self.kinds[kind] for kind in TRANSIENT_KINDS if self.kinds[kind]}

    def no_good_video_error(self) -> UserError:
        """Returns the error for a data set without a good video."""
        reason = next(iter(self.reasons.values()))
        return UserError(
            f"no readable video among the first {self.dropped} clips: check the manifest and the "
            f"files, e.g. {reason}",
            *self._table_lines(),
        )

    def too_many_tries_error(self, tries: int) -> UserError:
        """Returns the error for `tries` consecutive bad videos at one position of a batch."""
        return UserError(
            f"{tries} videos in a row are bad, after {self.delivered} good clips:",
            *self._table_lines(),
        )

    def table(self) -> str:
        """Formats the number of clips for each kind of reason, in descending order; "" if none."""
        return "\n".join(self._table_lines())

    def _table_lines(self) -> list[str]:
        return [f"{count:8d}  {kind}" for kind, count in self.kinds.most_common()]


class _QuarantineFile:
    """A run's list of bad files, to which all of its processes append.

    The columns are `path` and `reason`.

    A truncated last line is terminated with a newline and ignored. Damaged rows are skipped.
    """

    def __init__(self, path: str):
        self._path, self._listed, self._read_bytes = path, set(), 0
        if os.path.exists(path):
            with file_lock.open_file(path, "r+b") as file:
                self._read(file)

    def add(self, bad_clip: BadClip) -> None:
        """Appends a row for a bad file unless it is already listed; logs write errors."""
        if bad_clip.path in self._listed:
            return
        try:
            with file_lock.open_file(self._path, "a+b") as file:
                file_lock.wait(file)
                self._read(file)
                if bad_clip.path not in self._listed:
                    reason = bad_clip.reason.removeprefix(f"{bad_clip.path}: ")
                    self._append(file, [bad_clip.path, f"{bad_clip.kind}: {reason}"])
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._path, error.strerror)
        self._listed.add(bad_clip.path)

    def _read(self, file: BinaryIO) -> None:
        """Adds the paths from lines that were appended since the last call."""
        file.seek(self._read_bytes)
        data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        if complete != data:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        text = complete.decode("utf-8", "surrogateescape")
        self._listed.update(csv_text.read_first_cells(text))
        self._read_bytes = file.seek(0, os.SEEK_END)

    def _append(self, file: BinaryIO, row: list[str]) -> None:
        text = csv_text.format_csv([row] if self._read_bytes else [["path", "reason"], row])
        # A single write avoids a partial row.
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        self._read_bytes = file.tell()
