"""The folder of a run: its lock against a second run, its free space, and its records."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
import uuid
import weakref

import jax
import ml_collections
from absl import logging

from invnext_jax import atomic_file, file_lock
from invnext_jax.checkpointing import run_metadata, storage
from invnext_jax.errors import UserError
from invnext_jax.training.recipe import Recipe

LOCK = "run.lock"
# Prefixes of the names of records to which a resumed run appends.
_EARLIER = ("metrics.jsonl", "config.json", "recipe.json", "quarantine")


class Workdir:
    """Creates the run's folder and, in process 0, locks it until `close`.

    The kernel releases the lock when the process ends.

    Args:
      path: the run's folder.

    Raises:
      UserError: the folder cannot be written, or another process has locked it.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).absolute()
        self._file = None
        if jax.process_index() != 0:
            return
        try:
            self._lock()
        except OSError as error:
            raise UserError(
                f"cannot write in --workdir={path}: {error.strerror}; choose another folder, or "
                "change its permissions"
            ) from error

    def _lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._file = file_lock.open_locked(self.path / LOCK)
        except file_lock.LockHeldError as error:
            raise UserError(
                f"another process uses {self.path} ({error}): wait for it or end it, or "
                "choose another --workdir"
            ) from error

    def exists(self) -> bool:
        """Returns whether the locked folder still exists. Valid in process 0 only."""
        try:
            on_disk = os.stat(self.path / LOCK)
        except OSError:
            return self._file is None
        locked = os.fstat(self._file.fileno()) if self._file is not None else on_disk
        return (on_disk.st_dev, on_disk.st_ino) == (locked.st_dev, locked.st_ino)

    def write_error(self, needed: int) -> str:
        """Returns the reason why about `needed` bytes cannot be written, or "" (process 0 only).

        If the folder was removed, it is created and locked again.

        Raises:
          UserError: the folder was removed, and another run has locked the new one.
        """
        try:
            # If no file is open, the last attempt to lock the folder failed.
            if self._file is None or not self.exists():
                logging.warning("%s was removed during the run and is created again", self.path)
                self.close()
                self._lock()
            probe = self.path / f".probe-{uuid.uuid4().hex}"
            with open(probe, "xb") as file:
                file.write(b"0")
            probe.unlink()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            return f"{error.strerror}: {error.filename or self.path}"
        if free < needed:
            return f"{free:,} bytes free, about {needed:,} needed"
        return ""

    def describe_space(self) -> str:
        """Returns the folder's free space as text, such as "; 12,345 bytes free"."""
        try:
            return f"; {shutil.disk_usage(self.path).free:,} bytes free"
        except OSError as error:
            return f"; {error.strerror}"

    def close(self) -> None:
        """Releases the lock."""
        if self._file is not None:
            file_lock.release(self._file)
            self._file = None


class BucketWorkdir:
    """The folder of a run in a bucket, with the methods of `Workdir`.

    A bucket has no locks that end with their process. Instead, the run that was started last owns
    the folder. It writes its name to `run.lock`, and an earlier run that is still training stops
    before its next save. A killed run can therefore be restarted immediately, on any host.

    Args:
      path: the run's folder.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, path: storage.Path):
        self.path, self._lock = path, path / LOCK
        self._owner = {"pid": os.getpid(), "host": socket.gethostname(), "id": uuid.uuid4().hex}
        if jax.process_index() != 0:
            return
        try:
            with storage.translate_errors():
                earlier = self._lock.read_text().strip() if storage.exists(self._lock) else ""
                self._lock.write_text(json.dumps(self._owner) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write in --workdir={path}: {error.strerror}; choose another folder, or "
                "change its permissions"
            ) from error
        if earlier:
            logging.warning(
                "%s was not released by its last run (%s); if that run is still training, it "
                "will stop at its next save",
                path,
                earlier,
            )

    def write_error(self, needed: int) -> str:
        """Returns the reason why nothing can be written, or "" (process 0 only).

        Raises:
          UserError: another run was started in the folder.
        """
        del needed
        try:
            with storage.translate_errors():
                holder = self._lock.read_text().strip() if storage.exists(self._lock) else ""
                if holder and json.loads(holder).get("id") != self._owner["id"]:
                    raise UserError(
                        f"another run was started in {self.path} ({holder}): this run stops; "
                        "choose another --workdir for one of them"
                    )
                self._lock.write_text(json.dumps(self._owner) + "\n")
        except OSError as error:
            return f"{error.strerror}: {self._lock}"
        return ""

    def describe_space(self) -> str:
        """Returns "": a bucket is never full."""
        return ""

    def close(self) -> None:
        """Removes the lock if it belongs to this run."""
        if jax.process_index() != 0:
            return
        with contextlib.suppress(OSError, ValueError), storage.translate_errors():
            if json.loads(self._lock.read_text()).get("id") == self._owner["id"]:
                self._lock.unlink()


def open_workdir(path: storage.Path) -> Workdir | BucketWorkdir:
    """Creates and locks the folder of a run; see `Workdir` and `BucketWorkdir`."""
    return BucketWorkdir(path) if storage.is_bucket(path) else Workdir(path)


def check_rename(folder: pathlib.Path) -> None:
    """Checks that folders can be renamed in `folder`, which finishing a checkpoint requires.

    Raises:
      UserError: folders cannot be renamed.
    """
    probe = folder / f".probe-{os.getpid()}"
    renamed = probe.with_name(probe.name + "-renamed")
    try:
        probe.mkdir()
        try:
            probe.rename(renamed)
        finally:
            for path in (probe, renamed):
                with contextlib.suppress(FileNotFoundError):
                    path.rmdir()
    except OSError as error:
        raise UserError(
            f"folders in {folder} cannot be renamed ({error.strerror}), so no checkpoint could be "
            "finished; choose a --workdir on another file system"
        ) from error


class Records:
    """The local folder of a run's records: config, metrics, tables and traces.

    Objects in a bucket cannot be appended to. If the workdir is in a bucket, the records are
    therefore written to a temporary local folder. They are copied to the bucket when a checkpoint
    is saved and when the run ends.

    Args:
      workdir: the run's folder.

    Attributes:
      folder: the local folder in which records are written; the workdir itself if it is local.

    Raises:
      OSError: earlier records cannot be read.
    """

    def __init__(self, workdir: storage.Path):
        self._workdir, self._copied = workdir, {}
        self.folder = workdir
        if not storage.is_bucket(workdir):
            return
        parent = pathlib.Path(tempfile.mkdtemp(prefix="invnext_jax_records_"))
        weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)
        self.folder = parent / workdir.name  # a tracker shows the name of the run
        self.folder.mkdir()
        with storage.translate_errors():
            for path in workdir.iterdir() if storage.is_dir(workdir) else ():
                own = path.name.removesuffix(self._suffix())
                if own.startswith(_EARLIER) and path.name == own + self._suffix():
                    (self.folder / own).write_bytes(path.read_bytes())
                    self._copied[own] = self._version(self.folder / own)

    def write_config(self, config: ml_collections.FrozenConfigDict, recipe: Recipe) -> None:
        """Writes config.json and recipe.json (process 0 only)."""
        if jax.process_index() != 0:
            return
        trees = {"config.json": run_metadata.config_to_json(config)}
        trees["recipe.json"] = recipe.to_json()
        for name, tree in trees.items():
            try:
                atomic_file.write_text(self.folder / name, json.dumps(tree, indent=2) + "\n")
            except OSError as error:  # not fatal, because each checkpoint contains the config
                logging.warning("%s cannot be written: %s", self.folder / name, error.strerror)

    def copy(self) -> None:
        """Copies this process's new and changed records to the bucket. Warns if this fails."""
        if self.folder is self._workdir:
            return
        try:
            with storage.translate_errors():
                for path in storage.list_files(self.folder):
                    name, version = str(path.relative_to(self.folder)), self._version(path)
                    if self._copied.get(name) != version:
                        (self._workdir / (name + self._suffix())).write_bytes(path.read_bytes())
                        self._copied[name] = version
        except OSError as error:
            logging.warning(
                "records cannot be copied to %s (%s); they will be copied later",
                self._workdir,
                error.strerror,
            )

    @staticmethod
    def _suffix() -> str:
        """Returns the suffix of this process's files, such as quarantine.csv, in the bucket."""
        return f".process-{jax.process_index()}" if jax.process_index() else ""

    @staticmethod
    def _version(path: pathlib.Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_mtime_ns, status.st_size
