"""The content of a list of videos, and the options for reading it."""

import dataclasses

NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One video of a list.

    Attributes:
      path: Absolute path of the file, or the path that was searched if the file is missing.
      source: Name of the data set.
      start: Start in seconds. None is the beginning.
      end: End in seconds. None is the end.
      labels: Class id for each column `label_<task>`.
      problem: Reason why the file is missing, or "" if it exists.
      may_be_trimmed: Whether the file may contain only the seconds from `start` to `end`.
    """

    path: str
    source: str
    start: float | None = None
    end: float | None = None
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    problem: str = ""
    may_be_trimmed: bool = False


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Options for reading a list.

    Attributes:
      videos: Folder of the files. "" is the folder of the list.
      source: Name of the data set. "" derives it from the list.
      task: Name of the classification task. Its labels are stored in the column `label_<task>`.
      classes: File of class names, JSON or one per line, that defines the class ids.
          "alphabetical" numbers the class names of the list in alphabetical order. "" does the
          same, unless another manifest in the output folder already has ids for these classes.
      split: Split to read if the list contains several. "all" reads all of them.
      fold: Number of the HMDB51 split, 1 to 3.
    """

    videos: str = ""
    source: str = ""
    task: str = "class"
    classes: str = ""
    split: str = ""
    fold: int = 1


@dataclasses.dataclass(frozen=True)
class VideoList:
    """The content of a list.

    Attributes:
      entries: Videos in the order of the list.
      classes: Class id of each class name, or None if the list has no class names.
      classes_file: File that defines the class ids; "" if they were assigned in alphabetical
          order.
      notes: Sentences for the user, for example about columns that are not read.
    """

    entries: list[VideoEntry]
    classes: dict[str, int] | None = None
    classes_file: str = ""
    notes: tuple[str, ...] = ()
