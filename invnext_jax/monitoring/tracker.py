"""Sends the metrics of a run to a package with the interface of `wandb`, such as `trackio`.

The package runs in a thread of process 0. The run never waits for it, and continues without it
after a failure.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import queue
import threading
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from invnext_jax import sanitize
from invnext_jax.errors import UserError, summarize_error

PACKAGES = ("wandb", "trackio")
PROJECT = "invnext_jax"
_MAX_PENDING = 1000  # records
_CLOSE_SECONDS = 20.0
# Files of the current folder that wandb reads without an option that prevents it. The first two
# can name the server that gets the API key.
_WANDB_FILES = ("wandb/settings", ".wandb/settings", "config-defaults.yaml")


def parse_setting(setting: str) -> tuple[str, str]:
    """Returns the package and the project of `config.log.tracker`; ("", "") if it is empty.

    Raises:
      UserError: the setting is invalid.
    """
    package, _, project = setting.partition(":")
    if setting and package not in PACKAGES:
        raise UserError(
            f"config.log.tracker={setting!r} must be empty, 'wandb' or 'trackio', or one of them "
            "with a project, such as 'trackio:my-project'"
        )
    return (package, project or PROJECT) if setting else ("", "")


def _check_current_folder(package: str) -> None:
    """Checks that the package reads no file of the current folder, which may be a stranger's."""
    found = [name for name in _WANDB_FILES if package == "wandb" and os.path.lexists(name)]
    if found:
        raise UserError(
            f"wandb would read the file {found[0]} of the current folder, which can name a server "
            "that gets your API key: delete the file or start the run in another folder, and use "
            "~/.config/wandb/settings or environment variables such as WANDB_BASE_URL instead"
        )


class Tracker:
    """Sends records to a tracker in a thread, in process 0 only.

    Records are dropped while the tracker is more than 1,000 records behind.

    Args:
      config: the run's config; `config.log.tracker` selects the package and the project.
      workdir: the run's folder, whose name is that of the run.

    Raises:
      UserError: the setting is invalid, the package is not installed, or wandb would read a file
          of the current folder.
    """

    def __init__(self, config: Any, workdir: str | pathlib.Path):
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_MAX_PENDING)
        self._thread, self._warned = None, False
        self._package, project = parse_setting(config.log.tracker)
        if not self._package or jax.process_index() != 0:
            return
        if importlib.util.find_spec(self._package) is None:
            raise UserError(
                f"config.log.tracker={config.log.tracker!r} needs the package {self._package}: "
                f"pip install {self._package}"
            )
        _check_current_folder(self._package)
        path = pathlib.Path(workdir).absolute()
        options = {
            "project": project,
            "name": path.name,
            "config": sanitize.redact_tree(json.loads(json.dumps(config.to_dict()))),
            "resume": "allow",
            "dir": str(path),
            "id": hashlib.sha256(str(path).encode()).hexdigest()[:16],
        }
        # A daemon, so that a package that hangs does not delay the end of the process.
        self._thread = threading.Thread(target=self._run, args=(options,), daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Sends a record that has a "step". Values that are None are left out."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait({k: v for k, v in record.items() if v is not None})
        except queue.Full:
            self._warn("it is too slow, and records are left out")

    def close(self) -> None:
        """Waits at most 20 seconds until the tracker has all records."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn("it does not finish")
        self._thread = None

    def _run(self, options: dict[str, Any]) -> None:
        try:
            os.environ.setdefault("WANDB_CONSOLE", "off")  # leaves standard output as it is
            # Git runs programs that the settings of a repository name.
            os.environ.setdefault("WANDB_DISABLE_GIT", "true")
            module = importlib.import_module(self._package)
            known = inspect.signature(module.init).parameters  # trackio has no `dir` and `id`
            module.init(**{name: value for name, value in options.items() if name in known})
            while (record := self._queue.get()) is not None:
                values = dict(record)
                module.log(values, step=values.pop("step"))
            module.finish()
        # The package may raise anything, also SystemExit, and the run must continue.
        except BaseException as error:
            self._warn(summarize_error(error))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logging.warning("%s does not get all metrics: %s", self._package, reason)
        self._warned = True
