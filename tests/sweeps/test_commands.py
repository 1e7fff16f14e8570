"""The commands of launch/sweep.py, with a fake script instead of trainings."""

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time

import pytest
from fake_sweeps import FAKE

from invnext_jax.errors import UserError
from invnext_jax.planning import plan
from invnext_jax.sweeps import cluster_commands, commands, flag_checks, resources, step_config
from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.manifests.options import ClusterOptions
from invnext_jax.sweeps.manifests.write import System
from invnext_jax.sweeps.report import sweep_page
from invnext_jax.sweeps.runner import RunOptions
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder

FILE = """
from invnext_jax.sweeps.arms import Step, chain, grid, make_arm

VIDEOS = "world:simple/train?videos=64"
CHAIN = chain(
    stage1=Step("", "configs/stage1.py:tiny", {"total_steps": 3, "data.manifest": VIDEOS}),
    probe=Step("", "configs/eval/tasks/linear_probe.py:tiny",
        {"train_manifest": VIDEOS, "val_manifest": "world:simple/val?videos=16"}),
)

def sweep():
    for gain in (0.5, 2.0):
        yield make_arm(CHAIN, {"stage1.init_gain": gain}, is_baseline=gain == 0.5)
"""
OPTIONS = RunOptions(retries=0, poll_seconds=0.02, stop_seconds=20.0)


@pytest.fixture(autouse=True)
def fake_scripts(monkeypatch):
    """Replaces the scripts and the planner, and makes the jobs fast."""
    monkeypatch.setattr(step_config, "SCRIPTS", dict.fromkeys(step_config.Kind, str(FAKE)))
    monkeypatch.setattr(commands, "SCRIPTS", step_config.SCRIPTS)
    planned = {"peak_bytes": 1e6, "memory_bytes": 1e9, "fits": True}
    planned |= {"step_flops": 1e12, "step_seconds": 3600.0}
    monkeypatch.setattr(plan, "make_plan", lambda *_, **__: planned)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.005")


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return commands.Request(str(tmp_path / "mine.py"), seeds=(0, 1))


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "sweep")


def make_executor():
    return LocalExecutor(Machine(cores=(0, 1)))


def run(folder, request, **options):
    return commands.run_sweep(folder, request, make_executor, OPTIONS, **options)


def starts(folder):
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    return [entry["job"] for entry in map(json.loads, lines) if entry["event"] == "start"]


def test_a_sweep_runs_from_its_file_to_its_table(folder, request_, tmp_path, capsys):
    assert run(folder, request_)
    assert "2 arms, 8 different jobs in" in capsys.readouterr().out
    assert len(starts(folder)) == 8
    table = sweep_page.write_tables(folder, tmp_path / "table.md")
    assert "| init_gain=0.5 (baseline)" in table and "66.7 ± 0.0 (n 2)" in table
    assert "33.3 ± 0.0 (n 2)" in table and "(2 seeds)" in table
    text = commands.show_status(folder)
    assert "8 jobs: 8 finished. The sweep command does not run." in text


def test_the_same_command_and_the_folder_alone_continue(folder, request_, capsys):
    run(folder, request_)
    assert run(folder, request_) and run(folder, None)
    assert len(starts(folder)) == 8
    (folder.path / f"runs/{starts(folder)[-1]}/results.json").unlink()
    assert run(folder, None)
    assert len(starts(folder)) == 9
    assert "jobs: 8 finished" in capsys.readouterr().out


def test_arms_can_be_added(folder, request_, tmp_path):
    run(folder, request_)
    (tmp_path / "mine.py").write_text(FILE.replace("(0.5, 2.0)", "(0.5, 2.0, 3.0)"))
    assert run(folder, request_)
    assert len(starts(folder)) == 12 and len(set(starts(folder))) == 12


def test_resources_are_written(folder, request_):
    run(folder, request_)
    resources = {planned.job.resources for planned in folder.read_sweep().jobs.values()}
    assert all(r.cores == 1 and r.devices == 0 and r.memory >= 1.5e9 for r in resources)


def test_failed_jobs_are_started_again_on_request(folder, request_, monkeypatch, capsys):
    sweep, _ = commands.expand_request(request_, folder.path)
    name = sweep.arms[0].jobs["stage1"]
    monkeypatch.setenv("FAKE_FAIL", name)
    assert not run(folder, request_)
    assert "6 finished, 1 failed, 1 blocked; --status shows the reasons" in capsys.readouterr().out
    assert not run(folder, None)  # it is not repeated
    assert starts(folder).count(name) == 1
    monkeypatch.delenv("FAKE_FAIL")
    assert run(folder, None, retry=True)
    assert starts(folder).count(name) == 2


def test_missing_files_are_a_user_error(folder, request_, tmp_path):
    request = commands.Request(request_.source, settings=[f"train.data.manifest={tmp_path}/no.csv"])
    with pytest.raises(UserError, match=r"1 input file\(s\) of the sweep do not exist: .*no.csv"):
        run(folder, request)
    assert not folder.exists()


def test_other_programs_in_the_folder_are_refused(folder, request_):
    run(folder, request_)
    path = folder.path / "sweep.json"
    path.write_text(path.read_text().replace(str(FAKE), "/bin/other"))
    with pytest.raises(UserError, match="is not a script of this installation"):
        run(folder, None)
    assert run(folder, request_)


@pytest.mark.parametrize("text", ["{}", "[1]", "{damaged"])
def test_a_damaged_description_is_a_user_error(folder, request_, text):
    run(folder, request_)
    (folder.path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="repeat the command that started the sweep"):
        commands.show_status(folder)


def test_a_folder_without_a_sweep_is_a_user_error(folder):
    for command in (commands.show_status, lambda f: run(f, None)):
        with pytest.raises(UserError, match="has no sweep: start one with --config"):
            command(folder)


def test_first_signal_lets_the_jobs_save(folder, request_, monkeypatch, default_signal_handlers):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "3.0")
    before = signal.getsignal(signal.SIGINT)
    thread = after_first_step(folder, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert not run(folder, request_)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    states = {folder.read_state(name).status for name in folder.read_sweep().jobs}
    assert states == {Status.STOPPED, Status.WAITING}
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.005")
    assert run(folder, request_)


def after_first_step(folder, action):
    """Calls a function in a thread after the first step of a job."""
    history = folder.path / "history.jsonl"

    def wait():
        deadline = time.monotonic() + 120
        while not history.exists() or '"step"' not in history.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_cancel_stops_the_running_command(folder, request_, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")
    sentences = []
    thread = after_first_step(
        folder, lambda: sentences.append(commands.cancel(SweepFolder(folder.path), make_executor))
    )
    assert not run(folder, request_)
    thread.join()
    assert "2 stopped; the same command as before continues the sweep" in sentences[0]


def test_cancel_without_running_jobs_changes_nothing(folder, request_):
    run(folder, request_)
    before = commands.show_status(folder)
    assert commands.cancel(folder, make_executor).startswith("jobs: 8 finished;")
    assert commands.show_status(folder) == before


def test_dry_run_predicts_and_writes_nothing(folder, request_):
    text = commands.predict(folder.path, request_, "h100")
    assert "8 jobs: " in text and "device-hours at the roofline" in text
    assert text.count("stage1-") == 4 and not folder.path.exists()


def test_dry_run_refuses_jobs_that_do_not_fit_on_this_machine(
    folder, request_, monkeypatch, capsys
):
    small = Machine(cores=(0, 1), total_memory=1e9)  # less than the processes of a job
    for module in (resources, commands):
        monkeypatch.setattr(module, "read_machine", lambda: small)
    with pytest.raises(UserError, match="8 of 8 jobs do not fit on this machine.* has 1.0 GB"):
        commands.predict(folder.path, request_, "h100")
    assert "device-hours at the roofline" in capsys.readouterr().out  # the table comes first
    elsewhere = dataclasses.replace(request_, device="h100")
    assert "8 jobs: " in commands.predict(folder.path, elsewhere, "h100")


@pytest.mark.parametrize("text", ["a", "a.b", "a=3", ".=3"])
def test_settings_of_another_form_are_user_errors(text):
    with pytest.raises(UserError, match=f"--set={text} must have the form"):
        commands.parse_settings([text])


def test_files_are_written_and_results_collected(folder, request_, tmp_path):
    hosts = {"hosts_per_job": 2, "devices_per_job": 8, "device": "h100"}
    request = dataclasses.replace(request_, executor="skypilot", **hosts)
    options = ClusterOptions(storage="gs://bucket/sweep")
    out = tmp_path / "out"
    text = cluster_commands.write_files(folder, request, out, System.SKYPILOT, options)
    assert [line.removeprefix("sky jobs launch ") for line in text.splitlines()] == [
        str(path) for path in sorted(out.iterdir(), key=lambda path: text.index(path.name))
    ]
    jobs = [planned.job for planned in folder.read_sweep().jobs.values()]
    assert {job.resources.hosts for job in jobs} == {2}
    for job in jobs[:-1]:  # as the cluster does
        subprocess.run(job.command, cwd=job.folder, check=True)
    assert "8 jobs: 1 waiting, 7 finished" in cluster_commands.collect(folder)
    assert len(starts(folder)) == 7


def test_all_inputs_outside_of_the_repository_must_exist_on_the_cluster(
    folder, request_, tmp_path, monkeypatch
):
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("tracked.csv", "mine.csv"):
        (repository / name).write_text("path\n" + "".join(f"{i}.mp4\n" for i in range(64)))
    (repository / "configs").symlink_to(os.path.abspath("configs"))
    monkeypatch.chdir(repository)
    for command in (["init", "-q"], ["add", "tracked.csv"]):
        subprocess.run(["git", *command], check=True)
    names = f"tracked.csv,{repository}/mine.csv,absent.csv,gs://bucket/a.csv,world:simple/train"
    settings = [f"train.data.manifest={names}"]
    request = dataclasses.replace(request_, executor="skypilot", settings=settings)
    options = ClusterOptions(storage="gs://bucket/sweep")
    text = cluster_commands.write_files(folder, request, tmp_path / "o", System.SKYPILOT, options)
    line = text.splitlines()[-1]
    assert line.startswith("must exist on the cluster") and line.endswith(
        f"manifests: {repository}/mine.csv, absent.csv"
    )


def test_jobs_of_another_executor_are_not_polled(folder, request_, tmp_path):
    run(folder, request_)
    name = folder.read_sweep().arms[0].jobs["stage1"]
    folder.write_state(name, JobState(Status.RUNNING, handle={"system": "slurm"}))
    with pytest.raises(UserError, match=r"submitted with --executor=slurm: repeat the command"):
        run(folder, None)
    with pytest.raises(UserError, match="--collect is for jobs that another tool started"):
        cluster_commands.collect(folder)


def test_the_executor_is_recorded_and_changes_only_on_purpose(folder, request_):
    flag_checks.check_executor(folder, "local")  # there is no sweep yet
    run(folder, dataclasses.replace(request_, executor="slurm"))
    assert json.loads((folder.path / "sweep.json").read_text())["executor"] == "slurm"
    flag_checks.check_executor(folder, "slurm")
    with pytest.raises(UserError, match=r"was started with --executor=slurm: repeat this flag"):
        flag_checks.check_executor(folder, "local")
    flag_checks.check_executor(folder, "local", is_given=True, has_config=True)
    run(folder, request_)
    flag_checks.check_executor(folder, "local")
    (folder.path / "sweep.json").write_text("{damaged")
    flag_checks.check_executor(folder, "local", has_config=True)
    with pytest.raises(UserError, match="is damaged|is not"):
        flag_checks.check_executor(folder, "local")


def test_folders_of_older_versions_have_no_executor(folder, request_):
    run(folder, request_)
    path = folder.path / "sweep.json"
    path.write_text(path.read_text().replace(' "executor": "local",\n', ""))
    flag_checks.check_executor(folder, "slurm")


def test_several_hosts_need_another_executor(folder, request_):
    with pytest.raises(UserError, match=r"--hosts_per_job=2 needs several machines"):
        run(folder, dataclasses.replace(request_, hosts_per_job=2))
