"""Output of commands without terminal escapes, which continues after its reader has exited."""

import contextlib
import errno
import os
import stat
import sys
import threading
import traceback
import warnings
from typing import Any, TextIO

from absl import flags, logging

from invnext_jax import sanitize

# Errors of writes to a pipe or terminal that has been closed and will not be read any more.
_CLOSED = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)


class ResilientStream:
    """A text stream whose writes never raise an `OSError`.

    After its pipe (`| head`) or terminal has closed, the text is discarded. Text that cannot be
    written for another reason, such as a full disk, is lost, but later text is written.

    Args:
      stream: the stream to write to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text if possible."""
        with self._discard_errors():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Writes a list of lines if possible."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flushes the buffer if possible."""
        with self._discard_errors():
            self._stream.flush()

    @contextlib.contextmanager
    def _discard_errors(self) -> Any:
        try:
            yield
        except OSError as error:
            if error.errno in _CLOSED:
                with contextlib.suppress(OSError):
                    _redirect_to_devnull(self._stream.fileno())


def make_output_resilient() -> None:
    """Replaces `sys.stdout` and `sys.stderr` with resilient streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the stream was closed when the command started, as with `>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115, used until the process ends
        if not isinstance(stream, ResilientStream):
            setattr(sys, name, ResilientStream(stream))


def redirect_output_to_devnull() -> None:
    """Redirects stdout and stderr to /dev/null, unless they are files.

    After a hangup, writing to the closed terminal or pipe may fail.
    """
    for output in (1, 2):
        with contextlib.suppress(OSError):  # the stream is already closed
            if not stat.S_ISREG(os.fstat(output).st_mode):
                _redirect_to_devnull(output)


def _redirect_to_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def sanitize_output() -> None:
    """Removes terminal escapes and URL secrets from the log, tracebacks and standard output.

    Progress bars on standard error are not changed, because they need control characters and
    contain no names. All processes call this once.
    """
    sys.stdout = _SanitizedStream(sys.stdout)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the log needs the defaults of its flags
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_SanitizedFormatter())
    sys.excepthook = _print_sanitized_traceback
    threading.excepthook = lambda args: _print_sanitized_traceback(*args[:3])
    warnings.formatwarning = _format_sanitized_warning


class _SanitizedStream:
    """A text stream that applies `sanitize.for_display` to all text."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(sanitize.for_display(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _SanitizedFormatter(logging.PythonFormatter):
    """Indents all lines of an entry but the first, so that none looks like another entry."""

    def format(self, record: Any) -> str:
        return _sanitize(super().format(record)).replace("\n", "\n  ")


def _print_sanitized_traceback(kind: Any, error: BaseException, trace: Any) -> None:
    text = "".join(traceback.format_exception(kind, error, trace)) * (kind is not SystemExit)
    print(_sanitize(text), end="", file=sys.stderr)


def _sanitize(text: str) -> str:
    return sanitize.for_display(sanitize.shorten(text, sanitize.MAX_LOG_ENTRY))


_format_warning = warnings.formatwarning


def _format_sanitized_warning(*args: Any, **options: Any) -> str:
    return _sanitize(_format_warning(*args, **options))
