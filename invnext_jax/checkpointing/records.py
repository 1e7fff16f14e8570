"""Local files with the records of a run: config, metrics, tables and traces.

Objects in a bucket cannot be appended to. If the workdir is in a bucket, the records are therefore
written to a temporary local folder. They are copied to the bucket when a checkpoint is saved and
when the run ends.
"""

import json
import pathlib
import shutil
import tempfile
import weakref

import jax
import ml_collections
from absl import logging

from invnext_jax import atomic_file
from invnext_jax.checkpointing import run_metadata, storage
from invnext_jax.training.recipe import Recipe

# Prefixes of the names of records to which a resumed run appends.
_EARLIER = ("metrics.jsonl", "config.json", "recipe.json", "quarantine")


class Records:
    """The local folder of the records of a run.

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
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="invnext_jax_records_"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        with storage.translate_errors():
            for path in workdir.iterdir() if workdir.is_dir() else ():
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
