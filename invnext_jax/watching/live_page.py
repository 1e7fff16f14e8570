"""The content of the page, which a thread renders again when its files have changed."""

import contextlib
import html
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from invnext_jax import regular_file, sanitize
from invnext_jax.errors import UserError, summarize_error

# A page is rendered for at most this share of the time, because a run may need the CPU.
_MAX_SHARE = 0.2
_PROBLEM = "problem"  # name of the section that shows the error of an update
# Errors of files that are removed, replaced, damaged or forged.
_READ_ERRORS = (UserError, AttributeError, *regular_file.DAMAGE)


class View(Protocol):
    """Renders the sections of a page.

    Attributes:
      names: names of the sections, from top to bottom.
    """

    names: tuple[str, ...]

    def render(self) -> dict[str, str]:
        """Returns the HTML of each section by its name; unchanged sections may be left out."""
        ...

    def close(self) -> None:
        """Releases what the view holds."""
        ...


class LivePage:
    """Renders a view in a thread while somebody looks at it.

    Args:
      view: the view.
      seconds: seconds between two looks at the files.
      max_viewers: maximum number of viewers at a time.
    """

    def __init__(self, view: View, seconds: float, max_viewers: int = 8):
        self._view, self._seconds, self._max_viewers = view, seconds, max_viewers
        self._changed = threading.Condition()
        self._sections = dict.fromkeys((_PROBLEM, *view.names), "")
        self._versions = dict.fromkeys(self._sections, 1)
        self._version, self._viewers, self._closed = 1, 0, False
        self._update()  # the first page is complete
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)
        self._thread.start()

    @property
    def sections(self) -> dict[str, str]:
        """The HTML of all sections."""
        with self._changed:
            return dict(self._sections)

    @contextlib.contextmanager
    def add_viewer(self) -> Iterator[bool]:
        """Counts a viewer. Yields False if there are too many."""
        with self._changed:
            is_admitted = self._viewers < self._max_viewers
            self._viewers += is_admitted
            self._changed.notify_all()  # the thread waits for the first viewer
        try:
            yield is_admitted
        finally:
            with self._changed:
                self._viewers -= is_admitted

    def wait(self, version: int, timeout: float) -> tuple[int, dict[str, str]] | None:
        """Waits for sections that are newer than a version.

        Args:
          version: the version that the last call returned; 0 for all sections.
          timeout: maximum number of seconds.

        Returns:
          The version and the changed sections, which are {} after the timeout; None if the page is
          closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._version > version, timeout)
            if self._closed:
                return None
            names = [name for name, number in self._versions.items() if number > version]
            return self._version, {name: self._sections[name] for name in names}

    def close(self) -> None:
        """Stops the thread and ends all calls of `wait`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._view.close()

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause)
                self._changed.wait_for(lambda: self._closed or self._viewers)
                if self._closed:
                    return
            pause = max(self._seconds, self._update() / _MAX_SHARE)

    def _update(self) -> float:
        """Renders the view, and returns how many seconds this took."""
        start, sections = time.monotonic(), {}
        try:
            sections, problem = self._view.render(), ""
        except _READ_ERRORS as error:  # the files may be complete the next time
            text = str(error) if isinstance(error, UserError) else summarize_error(error)
            problem = sanitize.for_display(text)
        sections[_PROBLEM] = html.escape(problem and f"This page cannot be updated: {problem}")
        with self._changed:
            changed = {k: text for k, text in sections.items() if self._sections.get(k) != text}
            if changed:
                self._version += 1
                self._sections |= changed
                self._versions |= dict.fromkeys(changed, self._version)
                self._changed.notify_all()
        return time.monotonic() - start
