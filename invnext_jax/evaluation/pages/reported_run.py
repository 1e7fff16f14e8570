"""A pretraining run on a page, which may come from an unknown source."""

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from invnext_jax.checkpointing import run_record
from invnext_jax.errors import UserError
from invnext_jax.stages import registry


@dataclasses.dataclass
class ReportedRun:
    """A pretraining run in a report.

    Attributes:
      folder: workdir of the run.
      record: metadata of the newest checkpoint; see `run_record.read_run_record`.
      records: logged metrics, one dict per logged step.

    Raises:
      UserError: a field of the config that pages show has an unexpected type.
    """

    folder: Path
    record: dict[str, Any]
    records: list[dict[str, Any]]

    def __post_init__(self):
        config, source = self.record["config"], str(self.folder)
        run_record.check_config(config, source)
        if config["stage"] not in registry.STAGES:
            raise UserError(f"{source} is a run of an unknown stage: use another run")

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The resolved config of the run."""
        return ml_collections.ConfigDict(self.record["config"])

    @property
    def title(self) -> str:
        """The name of the run's stage."""
        return registry.STAGES[self.record["config"]["stage"]].title

    @property
    def predictor(self) -> str:
        """A description of the predictor; "" if no loss of the run needs one."""
        config = self.config
        if "predictor" not in registry.STAGES[config.stage].param_groups(config):
            return ""
        return f"{config.predictor.depth} {config.predictor.kind} layers"

    @property
    def config_text(self) -> str:
        """The config as indented JSON."""
        return json.dumps(self.record["config"], indent=1)


def make_titles(runs: Sequence[ReportedRun]) -> list[str]:
    """Returns the titles of runs, with the names of their folders where titles are equal."""
    titles = [run.title for run in runs]
    folders = name_folders([run.folder for run in runs])
    return [
        f"{title} ({folder})" if titles.count(title) > 1 else title
        for title, folder in zip(titles, folders, strict=True)
    ]


def name_folders(folders: Sequence[str | Path]) -> list[str]:
    """Returns the name of each folder; its path if another folder has the same name."""
    paths = [os.path.realpath(folder) for folder in folders]
    count = collections.Counter(os.path.basename(path) for path in set(paths))
    names = map(os.path.basename, paths)
    return [
        name if count[name] == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]
