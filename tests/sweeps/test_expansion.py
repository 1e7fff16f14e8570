"""Steps with equal results are one job; the command of a job has the config of its step."""

import dataclasses
import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.data.held_out import training_rows
from invnext_jax.data.manifest import read_manifest
from invnext_jax.data.train_order import Mixture
from invnext_jax.errors import LABELS, UserError
from invnext_jax.sweeps import identity
from invnext_jax.sweeps.arms import Arm, Column, Step, chain
from invnext_jax.sweeps.commands import parse_settings
from invnext_jax.sweeps.expansion import ExpandedSweep, expand
from invnext_jax.sweeps.step_config import load_step
from invnext_jax.sweeps.sweep_file import Sweep

STAGE1, STAGE2 = "configs/stage1.py:tiny", "configs/stage2.py:tiny"
PROBE = "configs/eval/tasks/linear_probe.py:tiny"


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "videos.csv"
    path.write_text("path,source\n" + "".join(f"{i}.mp4,mine\n" for i in range(64)))
    return path


def expand_arms(tmp_path, *arms, settings=()):
    sweep = Sweep("test", tuple(arms), {})
    return expand(sweep, tmp_path / "sweep", parse_settings(settings))


def make_chain(**overrides):
    """Stage 1, Stage 2 and a probe of each. Overrides are by step."""
    steps = chain(stage1=STAGE1, probe1=PROBE, stage2=STAGE2, probe2=PROBE)
    return tuple(step.with_overrides(overrides.get(step.name, {})) for step in steps)


def hash_stage1(overrides=None, **fields):
    step = Step("stage1", STAGE1, overrides or {}, **fields)
    return identity.hash_step(load_step(step, None))


def test_arms_share_equal_steps(tmp_path):
    sweep, _ = expand_arms(
        tmp_path,
        Arm("a", make_chain()),
        Arm("b", make_chain(stage2={"target.kind": "momentum"})),
        Arm("another name for a", make_chain()),
    )
    a, b, again = (arm.jobs for arm in sweep.arms)
    assert a == again
    assert (a["stage1"], a["probe1"]) == (b["stage1"], b["probe1"])
    assert a["stage2"] != b["stage2"] and a["probe2"] != b["probe2"]
    assert len(sweep.jobs) == 6
    assert sweep.arm_names(a["stage2"]) == ["a", "another name for a"]


def test_steps_start_from_the_last_training(tmp_path):
    sweep, _ = expand_arms(tmp_path, Arm("a", make_chain()))
    used = sweep.arms[0].jobs
    sources = {step: sweep.jobs[name].job.dependencies for step, name in used.items()}
    assert sources == {
        "stage1": (),
        "probe1": (used["stage1"],),
        "stage2": (used["stage1"],),
        "probe2": (used["stage2"],),
    }
    workdir = sweep.jobs[used["stage1"]].job.workdir
    assert f"--config.init_from={workdir}" in sweep.jobs[used["stage2"]].job.command
    assert f"--checkpoint={workdir}" in sweep.jobs[used["probe1"]].job.command


def test_seeds_are_different_jobs_in_all_steps(tmp_path):
    sweep, configs = expand_arms(tmp_path, *(Arm("a", make_chain(), seed=s) for s in (0, 1)))
    first, second = (set(arm.jobs.values()) for arm in sweep.arms)
    assert not first & second
    assert {configs[name].config.seed for name in second} == {1}


def test_overrides_of_an_arm_do_not_reach_the_next_one(tmp_path):
    changed = make_chain(stage1={"data.frames": 4}, probe1={"data.frames": 4})
    sweep, configs = expand_arms(tmp_path, Arm("a", changed), Arm("b", make_chain()))
    frames = [
        [configs[arm.jobs[step]].config.data.frames for step in ("stage1", "probe1")]
        for arm in sweep.arms
    ]
    assert frames == [[4, 4], [8, 0]]


def other(option):
    """Another value of the same type."""
    if isinstance(option, bool):
        return not option
    if isinstance(option, float):
        return 0.9 * option + 1e-5  # the final learning rate stays below the first one
    if isinstance(option, int):
        return option + 1
    return (*option, "other") if isinstance(option, tuple) else f"{option}other"


def test_the_hash_has_exactly_the_options_that_change_results():
    options = run_metadata.flatten(stage1.get_config("tiny").to_dict())
    names = [n for n in options if "by_source" not in n and n not in LABELS]
    replaced = {"epochs", *(f"optimizer.{n}" for n in ("base_learning_rate",))}
    replaced |= {"optimizer.base_min_learning_rate", "optimizer.warmup_epochs"}
    before, same = hash_stage1(), set()
    for name in names:
        if hash_stage1({name: other(options[name])}) == before:
            same.add(name)
    neutral = {name for name in names if run_metadata.resume_rule(name) == "yes"}
    neutral |= {name for name in names if "equal up to rounding" in run_metadata.resume_rule(name)}
    assert same == (neutral | replaced) - {"eval.every_steps"}  # with metrics for the table
    assert {"remat", "attention", "mesh.fsdp", "data.workers", "log.every_steps"} <= same
    assert not same & {"seed", "batch_size", "accumulate", "total_steps", "mask.kind", "init_from"}


def test_steps_and_the_same_number_of_epochs_are_equal(manifest):
    paths = {"data.manifest": str(manifest)}
    epochs = {**paths, "total_steps": -1, "epochs": 4.0}  # of 64 videos, in batches of 32
    assert hash_stage1({**paths, "total_steps": 8}) == hash_stage1(epochs)
    assert hash_stage1({**paths, "total_steps": 9}) != hash_stage1(epochs)


def test_epochs_do_not_count_videos_that_are_held_out(tmp_path, manifest):
    """If the sweep expected more steps than the training has, the job would never be finished."""
    options = {"data.manifest": str(manifest), "total_steps": -1, "epochs": 8.0}
    steps = []
    for held_out in (0, 32):
        changed = Step("stage1", STAGE1, {**options, "data.held_out": held_out})
        sweep, configs = expand_arms(tmp_path, Arm("a", (changed,)))
        ((name, planned),) = sweep.jobs.items()
        steps.append(planned.total_steps)
    assert steps == [16, 8]  # of 64 and 32 videos, in batches of 32
    data = configs[name].config.data
    read = read_manifest(data.manifest)
    mixture = Mixture(read, data.weights, 0, training_rows(read, data.held_out))
    assert configs[name].training_videos() == mixture.videos  # as in the training


def test_the_content_of_files_counts_and_not_their_names(manifest, tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(manifest.read_bytes())
    before = hash_stage1({"data.manifest": str(manifest)})
    assert hash_stage1({"data.manifest": str(copy)}) == before
    copy.write_text(manifest.read_text() + "new.mp4,mine\n")
    assert hash_stage1({"data.manifest": str(copy)}) != before
    weights = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, text in zip(weights, ("same", "same", "other"), strict=True):
        path.write_text(text)
    hashes = [hash_stage1({"teacher.weights": str(path)}) for path in weights]
    assert hashes[0] == hashes[1] != hashes[2]


def test_fields_that_older_versions_did_not_have_do_not_change_the_hash(monkeypatch):
    """A sweep that was started before an option existed is not run again."""
    before = hash_stage1()
    config = stage1.get_config("tiny")
    config.new_option = 5
    monkeypatch.setitem(run_metadata._ADDED_FIELDS, "new_option", 5)
    monkeypatch.setattr("invnext_jax.sweeps.step_config._read_config", lambda _: config)
    assert hash_stage1() == before
    config.new_option = 6
    assert hash_stage1() != before


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_commands_have_the_config_of_their_step(tmp_path, manifest, monkeypatch):
    overrides = {
        "mask.kind": "multi_block",
        "mask.blocks": ((2, 0.7), (8, 0.15)),
        "data.manifest": f"{manifest}",
        "data.flip": False,
        "optimizer.learning_rate": 1e-4,
        "teacher.weights": "",
    }
    sweep, configs = expand_arms(tmp_path, Arm("a", make_chain(stage1=overrides), seed=5))
    for name, planned in sweep.jobs.items():
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        flags.DEFINE_string("checkpoint", None, "", flag_values=values)
        monkeypatch.setattr(sys, "argv", list(planned.job.command[1:]))  # read by config_flags
        rest = values(sys.argv)
        assert rest == [planned.job.command[1]]
        parsed = values.config
        if configs[name].config.get("stage"):
            parsed.init_from = ""
        assert parsed.to_dict() == configs[name].config.to_dict()
        assert values.workdir == str(planned.job.workdir)


def test_settings_reach_the_steps_of_their_scope(tmp_path):
    settings = ["train.total_steps=7", "eval.batch_size=3", "stage2.mask.blocks=((2, 0.5),)"]
    settings += ["stage2.mask.visible=[0.3]", "train.target.kind=momentum"]
    sweep, configs = expand_arms(tmp_path, Arm("a", make_chain()), settings=settings)
    used = {step: configs[name].config for step, name in sweep.arms[0].jobs.items()}
    assert used["stage1"].total_steps == used["stage2"].total_steps == 7
    assert used["probe1"].batch_size == 3 and used["stage1"].batch_size == 32
    assert used["stage2"].mask.blocks == ((2, 0.5),) and used["stage2"].mask.visible == (0.3,)
    assert used["stage2"].target.kind == "momentum"  # Stage 1 has no such option
    assert sweep.jobs[sweep.arms[0].jobs["stage1"]].total_steps == 7


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["total_steps"], "must have the form"),
        (["train=7"], "must have the form"),
        (["stage3.total_steps=7"], "has no effect, because the sweep has no step 'stage3'"),
        (["train.nothing=7"], "has no effect, because the config has no such option"),
        (["train.epochs=7"], "has no effect, because config.total_steps=800 is set"),
        (["stage1.nothing=7"], "is not an option of configs/stage1.py:tiny"),
        (["train.total_steps=many"], "is not a value of type int"),
        (["train.total_steps=1.5"], "has the wrong type"),
        (["stage1.target.kind=image"], "is not an option"),
    ],
)
def test_invalid_settings_are_user_errors(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        expand_arms(tmp_path, Arm("a", make_chain()), settings=settings)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (make_chain(stage1={"nothing": 1}), "sets 'nothing', which is not an option"),
        (make_chain(stage1={"mask": 1}), "sets the section 'mask'"),
        (make_chain(stage1={"mask.ratio": "much"}), "has the wrong type"),
        (make_chain(stage1={"mask.ratio": 2.0}), "config.mask.ratio"),
        (make_chain(stage1={"mask.aspect": (1.0, 1.0)}), "config.mask.aspect=.* is not used"),
        (make_chain(probe1={"knn.shots": (1,)}), "config.knn.shots=.* is not used"),
        (chain(probe=PROBE), "the evaluation 'probe' of the arm 'a' follows no training"),
        (chain(stage1="configs/none.py"), "there is no config file 'configs/none.py'"),
        (chain(stage1="configs/stage1.py:huge"), "unknown variant 'huge'"),
    ],
)
def test_invalid_steps_are_user_errors(tmp_path, steps, sentence):
    with pytest.raises(UserError, match=sentence):
        expand_arms(tmp_path, Arm("a", steps))


def test_a_column_with_an_unknown_step_is_a_user_error(tmp_path):
    columns = {"loss": Column("stage1", "loss"), "top-1": Column("prob1", "top1")}
    sweep = Sweep("mine.py", (Arm("a", make_chain()),), columns)
    sentence = "column 'top-1' of mine.py has the step 'prob1', which is not one of stage1, probe1,"
    with pytest.raises(UserError, match=sentence):
        expand(sweep, tmp_path)
    optional = dataclasses.replace(columns["top-1"], optional=True)
    sweep = dataclasses.replace(sweep, columns=columns | {"top-1": optional})
    expanded, _ = expand(sweep, tmp_path)
    assert list(expanded.columns) == ["loss"]
    tree = json.loads(json.dumps(expanded.to_json(tmp_path)))
    assert ExpandedSweep.from_json(tree, tmp_path).columns == expanded.columns


def test_a_chain_may_start_from_weights(tmp_path):
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"weights")
    probe = Step("probe", PROBE, {"checkpoint": str(weights)})
    stage2 = Step("stage2", STAGE2, {"init_from": str(weights)})
    sweep, configs = expand_arms(tmp_path, Arm("a", (probe, stage2)))
    assert all(not planned.job.dependencies for planned in sweep.jobs.values())
    assert not any("data/world" not in path for c in configs.values() for path in missing(c))
    moved = dataclasses.replace(probe, overrides={"checkpoint": str(tmp_path / "moved")})
    assert str(tmp_path / "moved") in missing(load_step(moved, None))


def missing(config):
    return identity.missing_files(config)


def test_a_sweep_survives_its_json_and_a_move(tmp_path):
    arm = Arm("a", make_chain(), seed=1, reference={"K400": 75.8}, group="Table", is_baseline=True)
    sweep, _ = expand_arms(tmp_path, arm)
    old, new = tmp_path / "sweep", tmp_path / "moved"
    tree = json.loads(json.dumps(sweep.to_json(old)))
    assert ExpandedSweep.from_json(tree, old) == sweep
    moved = ExpandedSweep.from_json(tree, new)
    for planned in moved.jobs.values():
        paths = [planned.job.workdir, planned.job.log, *planned.job.command]
        assert not any(f"{old}/" in str(path) for path in paths)
        assert f"--workdir={new}/runs/{planned.job.name}" in planned.job.command


def test_a_step_with_another_seed_than_its_arm_is_refused():
    step = Step("stage1", "configs/stage1.py:tiny", {"seed": 1})
    assert load_step(step, 1).config.seed == 1
    with pytest.raises(UserError, match="stage1.seed=1 and the seed 3 of the arm differ"):
        load_step(step, 3)
