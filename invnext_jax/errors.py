"""The one error type for mistakes that the user can mend, and how a command reports it."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake in what the user gave (config, path, checkpoint); its text says what to change."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into one line on standard error and exit code 2, without a traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
