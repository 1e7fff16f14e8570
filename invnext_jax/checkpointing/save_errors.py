"""Describes the cause of a failed save in one sentence, without the libraries' tracebacks.

Orbax logs a traceback for each thread and each array that could not be written, and TensorStore
prints one for each write that ends after Orbax has given up. These obscure the cause, which
`describe_cause` finds.
"""

import errno
import functools
import logging as standard_logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from invnext_jax.checkpointing import storage
from invnext_jax.errors import summarize_error

_ORBAX_FOLDER = os.path.dirname(ocp.__file__) + os.sep
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # part of messages of TensorStore
_TENSORSTORE_FILE = re.compile(r'.*"([^"]+)": ')  # the last quoted name before the reason


def describe_cause(error: BaseException) -> str:
    """Returns the system's message and the file of a failed save, if the error contains them."""
    codes = _OS_ERROR.findall(str(error))
    if codes:
        reason = os.strerror(int(codes[-1]))
        file = _TENSORSTORE_FILE.match(str(error).replace("\n", " "))
        return f"{reason}: {file[1]}" if file else reason
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return summarize_error(error)


def first_problem(previous: str, problem: str) -> str:
    """Returns why a save failed, if it may have failed because of the previous failed save.

    Late writes of a failed save can create its folder again while the next save begins, or fill it
    while it is removed.

    Args:
      previous: description of the cause of the previous failed save; "" if there is none.
      problem: description of the cause of this failed save.
    """
    late = tuple(map(os.strerror, (errno.EEXIST, errno.ENOTEMPTY)))
    return previous if previous and problem.startswith(late) else problem


@functools.cache
def suppress_tracebacks() -> None:
    """Suppresses the tracebacks of failed saves until the process ends.

    The caller must report the errors. The suppression is permanent, because TensorStore prints some
    tracebacks long after the save. With `--verbosity=0` (INFO) and above, nothing is suppressed.
    """
    sys.unraisablehook = _without_closed_loops(sys.unraisablehook)
    logging.get_absl_logger().addFilter(_keep_record)
    standard_logging.getLogger("asyncio").addFilter(_keep_record)


def _keep_record(record: standard_logging.LogRecord) -> bool:
    """Returns False for a traceback that Orbax logs or that involves Orbax, otherwise True.

    Late writes of a failed save have no traceback, but name a file of the incomplete checkpoint.
    """
    if not record.exc_info or logging.get_verbosity() >= logging.INFO:
        return True
    if storage.INCOMPLETE in str(record.exc_info[1]):
        return False
    files = [frame.filename for frame in traceback.extract_tb(record.exc_info[2])]
    return not any(file.startswith(_ORBAX_FOLDER) for file in [record.pathname, *files])


def _without_closed_loops(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps `sys.unraisablehook` so that it ignores calls into a closed event loop.

    After a failed save, TensorStore calls into its closed loop, and the hook receives the error.
    """

    def call(unraisable: Any) -> None:
        error = unraisable.exc_value
        is_closed_loop = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not is_closed_loop or logging.get_verbosity() >= logging.INFO:
            hook(unraisable)

    return call
