"""Expands the arms of a sweep to jobs. Equal steps of different arms become one job."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import field_checks
from invnext_jax.errors import UserError
from invnext_jax.field_checks import (
    COUNT,
    MAX_NAME,
    NAME,
    NUMBER,
    OBJECT,
    TEXT,
    Fields,
    check_types,
)
from invnext_jax.sweeps import evaluation_checks, identity, setting_checks
from invnext_jax.sweeps.arms import Arm, Column
from invnext_jax.sweeps.job import Job, Resources, move_command
from invnext_jax.sweeps.settings import Setting
from invnext_jax.sweeps.step_config import Kind, StepConfig, load_step
from invnext_jax.sweeps.sweep_file import Sweep
from invnext_jax.training import recipe as recipe_lib

MAX_JOB_NAME = 240  # bytes of the name of a job, which names files
MAX_ARMS, MAX_JOBS = 2**16, 2**16  # tables have at most as many values
MAX_SHOWN_ARMS = 8  # of one job
HASH_DIGITS = 12  # in the names of jobs; 1000 jobs collide with a probability of 2e-9


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep.

    Attributes:
      job: the command and its folders.
      kind: whether it is a training or an evaluation.
      total_steps: number of steps of a training; 0 for an evaluation.
    """

    job: Job
    kind: Kind
    total_steps: int = 0


@dataclasses.dataclass(frozen=True)
class PlannedArm:
    """An arm, see `arms.Arm`, and the names of its jobs by step."""

    name: str
    group: str
    seed: int | None
    is_baseline: bool
    reference: Mapping[str, float]
    jobs: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class ExpandedSweep:
    """The jobs of a sweep, sorted so that dependencies come first, and its table.

    Attributes:
      source: the sweep file and the sweep.
      arms: the rows of the table.
      columns: the columns of the table by title; {} for all values.
      jobs: the jobs by name.
      executor: value of --executor; "" if it is unknown.
    """

    source: str
    arms: tuple[PlannedArm, ...]
    columns: Mapping[str, Column]
    jobs: Mapping[str, PlannedJob]
    executor: str = ""

    def arm_names(self, job: str) -> list[str]:
        """Returns the names of the arms that use a job, with their seeds: "ratio=0.6 (seed 0)"."""
        seeds: dict[str, dict[int, None]] = {}
        for arm in self._arms_by_job.get(job, ()):
            used = seeds.setdefault(arm.name, {})
            if arm.seed is not None:
                used[arm.seed] = None
        return [
            f"{name} (seed{'s' * (len(used) > 1)} {', '.join(map(str, used))})" if used else name
            for name, used in seeds.items()
        ]

    def describe_arms(self, job: str) -> str:
        """Returns the first of the names of `arm_names`, and the number of the others."""
        return join_names(self.arm_names(job), MAX_SHOWN_ARMS)

    @functools.cached_property
    def groups(self) -> dict[str, list[PlannedArm]]:
        """The arms of each group."""
        found: dict[str, list[PlannedArm]] = {}
        for arm in self.arms:
            found.setdefault(arm.group, []).append(arm)
        return found

    @functools.cached_property
    def _arms_by_job(self) -> dict[str, list[PlannedArm]]:
        found: dict[str, list[PlannedArm]] = {}
        for arm in self.arms:
            for job in set(arm.jobs.values()):
                found.setdefault(job, []).append(arm)
        return found

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Returns a JSON-compatible dict.

        Args:
          folder: the folder of the sweep.
        """
        return {
            "source": self.source,
            "folder": str(folder),
            "executor": self.executor,
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "columns": {title: _column_to_json(c) for title, c in self.columns.items()},
            "jobs": [_job_to_json(planned) for planned in self.jobs.values()],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], folder: Path) -> "ExpandedSweep":
        """Inverse of `to_json`. If the sweep folder was moved, the paths of jobs are updated.

        Raises:
          KeyError, TypeError, ValueError: the description is damaged.
        """
        check_types(tree, _SWEEP)
        jobs: dict[str, PlannedJob] = {}
        for entry in tree["jobs"]:
            planned = _job_from_json(entry, tree["folder"], folder)
            name, dependencies = planned.job.name, planned.job.dependencies
            if name in jobs or not jobs.keys() >= set(dependencies):
                raise ValueError(f"the job {name!r} is repeated, or precedes its dependencies")
            jobs[name] = planned
        arms = tuple(_arm_from_json(arm, jobs) for arm in tree["arms"])
        columns = {title: Column(**column) for title, column in tree["columns"].items()}
        executor = tree.get("executor", "")  # not in folders of older versions
        check_types({"executor": executor}, {"executor": _LABEL})
        return cls(tree["source"], arms, columns, jobs, executor)


def join_names(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names and the number of the others, such as "a; b; c and 2 more".

    Names are separated by semicolons, because those of arms may contain commas.
    """
    shown, rest = "; ".join(names[:most]), len(names) - most
    return f"{shown} and {rest} more" if rest > 0 else shown


def _paths(folder: Path, name: str) -> dict[str, Path]:
    """Returns the workdir and the log of a job."""
    return {"workdir": folder / "runs" / name, "log": folder / "logs" / f"{name}.log"}


def _column_to_json(column: Column) -> dict[str, str]:
    fields = dataclasses.asdict(column)
    del fields["optional"]  # the column exists
    return fields


def _job_to_json(planned: PlannedJob) -> dict[str, Any]:
    job = dataclasses.asdict(planned.job)
    del job["workdir"], job["log"]
    job["folder"] = str(job["folder"])
    return {"kind": planned.kind.value, "total_steps": planned.total_steps, **job}


_ANY_TEXT = (lambda value: isinstance(value, str), "text")  # of paths that are not UTF-8, too
_ANY_TEXTS = field_checks.list_of(_ANY_TEXT, "a list of texts")
_LABEL = field_checks.line(0, MAX_NAME)
_COLUMN = field_checks.object_of(TEXT, "an object of texts")
_SWEEP: Fields = {
    **{"source": TEXT, "folder": _ANY_TEXT},
    "columns": field_checks.object_of(_COLUMN, "an object of columns with names", NAME),
    "arms": field_checks.list_up_to(MAX_ARMS, "arms"),
    "jobs": field_checks.list_up_to(MAX_JOBS, "jobs"),
}
_ARM: Fields = {
    **{"name": NAME, "group": _LABEL, "reference": field_checks.object_of(NUMBER, "numbers")},
    "seed": field_checks.optional(field_checks.integer(-(2**63), 2**63 - 1)),
    "jobs": field_checks.object_of(NAME, "an object of names", NAME),
    "is_baseline": (lambda value: isinstance(value, bool), "true or false"),
}
_JOB: Fields = {
    **{"name": NAME, "folder": _ANY_TEXT, "command": _ANY_TEXTS, "dependencies": _ANY_TEXTS},
    "environment": field_checks.object_of(_ANY_TEXT, "an object of texts"),
    **{"total_steps": COUNT, "resources": OBJECT},
}


def _arm_from_json(arm: Any, jobs: Mapping[str, PlannedJob]) -> PlannedArm:
    check_types(arm, _ARM)
    if not jobs.keys() >= set(arm["jobs"].values()):
        raise ValueError(f"the arm {arm['name']!r} has jobs that are not listed")
    return PlannedArm(**arm)


def _job_from_json(entry: Any, old: str, folder: Path) -> PlannedJob:
    check_types(entry, _JOB)
    resources = entry["resources"]
    check_types(resources, dict.fromkeys(resources, NUMBER) | {"device": TEXT})
    fields = dict(entry)
    kind, total_steps = Kind(fields.pop("kind")), fields.pop("total_steps")
    fields |= {"folder": Path(fields["folder"]), **_paths(folder, fields["name"])}
    fields["command"] = move_command(fields["command"], old, folder)
    fields["dependencies"] = tuple(fields["dependencies"])
    fields["resources"] = Resources(**fields["resources"])
    if not re.fullmatch(r"[\w-]+", fields["name"]) or len(fields["name"].encode()) > MAX_JOB_NAME:
        raise ValueError(f"invalid name {fields['name']!r:.80}")
    return PlannedJob(Job(**fields), kind, total_steps)


def expand(
    sweep: Sweep, folder: Path, settings: Sequence[Setting] = ()
) -> tuple[ExpandedSweep, dict[str, StepConfig]]:
    """Expands the arms of a sweep to jobs.

    Args:
      sweep: the sweep.
      folder: absolute path of the folder of the sweep.
      settings: options of the command line.

    Returns:
      The expanded sweep, and the config of each job by name.

    Raises:
      UserError: an option is invalid or has no effect, an evaluation has no encoder, a column has
        an unknown step, or there are too many arms.
    """
    identity.digest_videos.cache_clear()  # videos may have been replaced since an earlier call
    setting_checks.check_conflicts(settings, sweep.arms)
    jobs: dict[str, PlannedJob] = {}
    configs: dict[str, StepConfig] = {}
    if len(sweep.arms) > MAX_ARMS:
        raise UserError(f"{sweep.source} has more than {MAX_ARMS:,} arms: divide the sweep")
    arms = []
    for arm in sweep.arms:
        fields = arm.name, arm.group, arm.seed, arm.is_baseline, dict(arm.reference)
        arms.append(PlannedArm(*fields, _expand_arm(arm, folder, settings, jobs, configs)))
    setting_checks.check_effects(settings, configs)
    return ExpandedSweep(sweep.source, tuple(arms), sweep.find_columns(), jobs), configs


def _expand_arm(
    arm: Arm,
    folder: Path,
    settings: Sequence[Setting],
    jobs: dict[str, PlannedJob],
    configs: dict[str, StepConfig],
) -> dict[str, str]:
    """Adds the jobs of an arm that do not exist yet, and returns the names of its jobs by step."""
    used: dict[str, str] = {}
    source, training = "", None  # name and config of the last training
    for step in arm.steps:
        config = load_step(step, arm.seed, settings)
        start = "" if config.own_source else source
        if config.kind is Kind.EVALUATE and not (start or config.own_source):
            raise UserError(
                f"the evaluation {step.name!r} of the arm {arm.name!r} follows no training: set "
                f"its option 'checkpoint', or add a training before it"
            )
        name = f"{config.label}-{identity.hash_step(config, start)[:HASH_DIGITS]}"
        if name not in jobs:
            config = config.copy_sizes(configs.get(start))
            jobs[name] = _make_job(name, config, folder, start, configs.get(start))
            configs[name] = config
        used[step.name] = name
        if config.kind is Kind.TRAIN:
            source, training = name, config.config
        elif start:
            evaluation_checks.check_kept(arm.name, config.config, training, configs[start].config)
    return used


def _make_job(
    name: str, config: StepConfig, folder: Path, source: str, training: StepConfig | None
) -> PlannedJob:
    workdir = _paths(folder, name)["workdir"]
    start = workdir.with_name(source) if source else None
    config.check(str(start or config.own_source), training)
    job = Job(
        name=name,
        command=config.command(workdir, start),
        folder=Path.cwd(),
        **_paths(folder, name),
        dependencies=(source,) if source else (),
    )
    total_steps = 0
    if config.kind is Kind.TRAIN:
        total_steps = recipe_lib.resolve(config.config, config.training_videos()).total_steps
    return PlannedJob(job, config.kind, total_steps)
