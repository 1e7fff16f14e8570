"""Checks of the file that a page or table will replace: other files are not overwritten."""

import os
import re
from pathlib import Path

from invnext_jax import regular_file
from invnext_jax.errors import UserError

_HEAD_BYTES = 2**16
_STARTS = {  # of the pages and tables that this package writes, by their endings
    ".html": rb"\A\s*<!doctype html>",
    ".md": rb"^\| arm ",
    ".csv": rb"\Atable,arm,column,",
}


def check_replaceable(out: str | os.PathLike) -> None:
    """Checks that a file does not exist, is empty, or is a page or table of this package.

    Args:
      out: The file. If it does not end in .md or .csv, it must be an HTML page.

    Raises:
      UserError: The file has other contents or cannot be read.
    """
    if not os.path.isfile(out):
        return
    try:
        with regular_file.open_regular(out) as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UserError(
            f"{os.fspath(out)} exists and cannot be read ({error.strerror}): choose another file"
        ) from error
    start = _STARTS.get(Path(out).suffix, _STARTS[".html"])
    if head and not re.search(start, head, re.MULTILINE):
        raise UserError(
            f"{os.fspath(out)} exists and is not a page or table of this package: choose another "
            "file, or remove it"
        )
