"""Errors that a user can fix. Commands report them in one sentence without a traceback."""

import contextlib
import difflib
import errno
import functools
import glob
import importlib.util
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from invnext_jax import sanitize
from invnext_jax.command_output import make_output_resilient, sanitize_output

LABELS = frozenset({"variant", "stage"})  # options that only record the chosen config file
# What to do about an error of a file, by its number.
_FILE_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS), "check the path"),
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space, then repeat the command"
    ),
    errno.EIO: "check the disk",
}


class UserError(ValueError):
    r"""An error in the user's input (config, path, checkpoint). Its message says what to change.

    The first argument is the message, and each further one a line below it. New lines in them are
    parts of names. They become `\n`, so that a name cannot look like a line of the program.
    """

    def __str__(self) -> str:
        return "\n  ".join(sanitize.escape_lines(str(line)) for line in self.args)


class NonFiniteError(RuntimeError):
    """Training diverged: too many consecutive steps had a non-finite loss or gradient."""


def check_minimums(config: Any, minimums: Mapping[str, float]) -> None:
    """Checks that options are not below their minimums.

    Args:
      config: the run's config.
      minimums: dict from the dotted name of each option, such as "log.every_steps", to its
          minimum.

    Raises:
      UserError: an option is below its minimum.
    """
    for name, minimum in minimums.items():
        value = functools.reduce(operator.getitem, name.split("."), config)
        if value < minimum:
            raise UserError(f"config.{name}={value} must be at least {minimum}")


def check_local_path(name: str, path: str | os.PathLike) -> None:
    """Checks that a path is not a URL, which `pathlib` would turn into a local folder.

    Args:
      name: the name of the option, for the message.
      path: the path that the user gave.

    Raises:
      UserError: the path is a URL.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
        raise UserError(
            f"{name}={path} must be a local path: URLs are not supported here; choose a local or "
            "mounted folder, and copy the files afterwards"
        )


def summarize_error(error: BaseException) -> str:
    """Returns the type of an error and the start of its first line."""
    return f"{type(error).__name__}: {str(error)[:160]}".partition("\n")[0]


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Prints a `UserError` or `NonFiniteError` as one line on standard error, and exits.

    The exit code is 2 for a `UserError` and 3 for a `NonFiniteError`. An `OSError` of a full disk,
    of a file that must not be used, or whose name is too long, is like a `UserError`.
    """
    try:
        yield
    except (UserError, NonFiniteError) as error:
        text = sanitize.shorten(str(error), sanitize.MAX_MESSAGE)
        print(f"error: {sanitize.for_display(text)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 3)
    except OSError as error:
        advice = _FILE_ADVICE.get(error.errno)
        if advice is None or (error.filename is None and advice == "check the path"):
            raise
        name = error.filename or "a file"  # an error of an open file has no name
        text = f"{name} cannot be read or written ({error.strerror}): {advice}"
        print(f"error: {sanitize.escape_lines(sanitize.redact_urls(text))}", file=sys.stderr)
        sys.exit(2)


def run_command(
    main: Callable[[Sequence[str]], None],
    arguments: int | None = 0,
    local_paths: Sequence[str] = (),
) -> None:
    """Runs a launch script: parses the flags, calls `main` and reports user errors in one line.

    The script continues after its standard output is closed, for example by `| head`.

    Args:
      main: function called with the script's name, followed by the arguments that are not flags.
      arguments: maximum number of arguments that are not flags; None for no limit.
      local_paths: names of flags whose value must be a local path.
    """

    def guarded(argv: Sequence[str]) -> None:
        with exit_on_user_error():
            main(argv)

    def parse(argv: Sequence[str]) -> list[str]:
        make_output_resilient()  # absl has replaced the handler of standard error by now
        with exit_on_user_error():
            rest = parse_flags(argv)
            sanitize_output()
            if not flags.FLAGS["verbosity"].present:  # libraries log too much at level INFO
                logging.set_verbosity(logging.WARNING)
            if arguments is not None and len(rest) - 1 > arguments:
                raise UserError(f"unexpected argument {rest[arguments + 1]!r}: flags start with --")
            for name in local_paths:
                check_local_path(f"--{name}", flags.FLAGS[name].value)
            return rest

    app.run(guarded, flags_parser=parse)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line into absl's flags.

    Returns:
      The script's name, followed by the arguments that are not flags.

    Raises:
      UserError: a flag or config field is unknown, a value has the wrong type, the config file
          does not exist, or `config.variant` or `config.stage` is set.
    """
    for given in argv[1:]:
        path = given.removeprefix("--config=").partition(":")[0]
        if given.startswith("--config=") and not os.path.isfile(path):
            raise UserError(f"there is no config file {path!r}: see the folder configs")
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(_first_cause(str(error))) from error
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise UserError(_unknown_field(argv) or str(error)) from error
    _check_labels(argv)
    return rest


def list_overrides() -> tuple[str, ...]:
    """Returns the dotted names of the config fields that the command line sets, without "config".

    The command line must have been parsed.
    """
    from ml_collections import config_flags  # data workers import this module without it

    return tuple(config_flags.get_override_values(flags.FLAGS["config"]))


def _check_labels(argv: Sequence[str]) -> None:
    """Checks that the command line does not set fields that only record the chosen config file.

    Raises:
      UserError: the command line sets config.variant or config.stage.
    """
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    if not config or isinstance(config, str):  # launch/sweep.py has the name of a sweep file
        return
    files = [given.partition("=")[2] for given in argv if given.startswith("--config=")]
    path, _, variant = (files or ["configs/stage1.py"])[-1].partition(":")
    for name in LABELS.intersection(list_overrides()):
        value = config[name]
        if name == "stage":
            path = os.path.join(os.path.dirname(path), f"{value}.py")
        chosen = value if name == "variant" else variant
        raise UserError(
            f"config.{name}={value} has no effect: choose the {name} in the config path, "
            f"--config={path}" + (f":{chosen}" if chosen else "")
        )


def _first_cause(text: str) -> str:
    """Returns the main sentence of an absl message, which may contain tracebacks."""
    missing = re.match(r"flag (--[\w.]+)=None: .*must have a value", text)
    if missing:
        return f"{missing[1]} is missing"
    causes = re.findall(r"^\s*\w+(?:Error|Exception): (.+)$", text, re.MULTILINE)
    cause = causes[-1] if causes else text.partition("\n")[0]
    flag = re.match(r"flag (--[\w.\[\]]+=.*?): ", cause)
    for sign, expected in _TYPES.items() if flag else ():
        if sign in cause[flag.end() :]:
            return f"{flag[1]} is invalid: set it to {expected}"
    unknown = re.fullmatch(r"(Unknown command line flag '(.*)'\. Did you mean: )(.*) \?", cause)
    if unknown:
        likeness = lambda name: difflib.SequenceMatcher(None, unknown[2], name).ratio()  # noqa: E731
        names = sorted(unknown[3].split(", "), key=likeness, reverse=True)
        return f"{unknown[1]}{', '.join(names)}?"
    return cause


# Expected types by parts of the messages of absl for a value of the wrong type.
_TYPES = {
    "Non-boolean argument": "True or False",
    "invalid literal for int()": "an integer",
    "could not convert string to float": "a number",
}


def _unknown_field(argv: Sequence[str]) -> str:
    """Returns an error message for the first flag `--config.a.b` without such a field, or ""."""
    files = [given.partition("=")[2] for given in argv if given.startswith("--config=")]
    try:
        known = list(_fields(_load_config(files[-1]).to_dict())) if files else []
    except ValueError:  # raised if loading the file again registers something twice
        known = []
    for given in argv[1:]:
        name = re.sub(r"\[[^]]*\]", "", given.partition("=")[0].lstrip("-"))
        if known and name.startswith("config.") and name not in known:
            if other := _find_in_other_stage(name, files[-1]):
                return f"--{name} is an option of {other} only: remove it, or choose that file"
            if source := re.match(r"config\.data\.by_source\.([^.]+)\.\w+$", name):
                return (
                    f"config.data.by_source has no source {source[1]!r}: add it to by_source in a "
                    "copy of the config file, with the spelling of the manifest"
                )
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            return f"unknown option --{name}: the nearest one is --{nearest[0]}"
    return ""


def _find_in_other_stage(name: str, given: str) -> str:
    """Returns the config file of another stage that has a field, or ""."""
    path, colon, variant = given.partition(":")
    for other in sorted(glob.glob(os.path.join(os.path.dirname(path), "stage*.py"))):
        if other != path:
            with contextlib.suppress(ValueError, TypeError):
                if name in _fields(_load_config(f"{other}{colon}{variant}").to_dict()):
                    return other
    return ""


def _load_config(given: str) -> Any:
    path, colon, variant = given.partition(":")
    spec = importlib.util.spec_from_file_location("_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[variant] if colon else [])


def _fields(tree: Mapping[str, Any], prefix: str = "config") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}.{name}")
