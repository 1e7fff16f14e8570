"""Scans a folder for video files, and counts the files with other extensions."""

import collections
import dataclasses
import os

VIDEO_EXTENSIONS = (
    *".mp4 .m4v .mov .qt .3gp .3g2 .f4v .mj2 .webm .mkv .mk3d .avi .divx .wmv .asf .flv".split(),
    *".mpg .mpeg .mpe .mpv .m1v .m2v .vob .ts .mts .m2ts .m2t .mod .tod .mxf .dv".split(),
    *".ogv .ogg .ogm .rm .rmvb .nut .ivf .y4m .h264 .264 .h265 .265 .hevc .av1 .obu .gif".split(),
)


@dataclasses.dataclass(frozen=True)
class FolderScan:
    """The files in a folder and its subfolders.

    Attributes:
      videos: Sorted absolute paths of the files with a video extension.
      left_out: Number of other files for each extension, in lower case with the dot.
      unreadable: Folders that cannot be read.
      subfolders: Number of folders directly in the folder that contain videos.
    """

    videos: list[str]
    left_out: dict[str, int]
    unreadable: list[str]
    subfolders: int = 0

    def describe(self) -> list[str]:
        """Returns sentences about files that are left out and folders that cannot be read."""
        notes = []
        if self.subfolders > 1:
            notes.append(
                f"the names of the {self.subfolders} subfolders are not read as classes: to label "
                "the videos, index a list of lines 'path,label'"
            )
        if self.left_out:
            kinds = [f"{count} {end or 'without one'}" for end, count in self.left_out.items()]
            total = sum(self.left_out.values())
            notes.append(
                f"{total} files left out because of their extension ({', '.join(kinds)}): if some "
                "are videos, rename them or add them to a list of paths"
            )
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} folders cannot be read, e.g. {self.unreadable[0]}: their "
                "files are missing"
            )
        return notes


def scan_folder(folder: str | os.PathLike) -> FolderScan:
    """Finds all video files in a folder and its subfolders.

    Links to folders are followed; each folder is scanned once.
    """
    videos, left_out, unreadable, seen = [], collections.Counter(), [], set()
    folders = collections.deque([os.path.abspath(folder)])
    while folders:
        parent = folders.popleft()
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            unreadable.append(parent)
            continue
        inside = []
        for entry in entries:
            extension = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                # Links come last, so that a file is found by a path without links if there is one.
                (folders.append if entry.is_symlink() else inside.append)(entry.path)
            elif extension in VIDEO_EXTENSIONS:
                videos.append(entry.path)
            else:
                left_out[extension] += 1
        folders.extendleft(reversed(inside))
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    below = [os.path.relpath(video, os.path.abspath(folder)) for video in videos]
    subfolders = {path.partition(os.sep)[0] for path in below if os.sep in path}
    return FolderScan(sorted(videos), dict(ordered), unreadable, len(subfolders))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
