"""Metrics are sent to a package with the interface of wandb, which cannot end or stall a run."""

import os
import sys
import threading
import time
import types

import pytest

from invnext_jax.errors import UserError
from invnext_jax.monitoring import reporter, tracker


class FakePackage(types.ModuleType):
    """Fake of wandb that keeps what it gets; `fail` names a function that raises `error`."""

    def __init__(self, name="wandb"):
        super().__init__(name)
        self.__spec__ = types.SimpleNamespace()
        self.started, self.records, self.is_finished = {}, [], False
        self.fail, self.error, self.gate = "", RuntimeError("no network"), threading.Event()
        self.gate.set()

    def _call(self, name):
        self.gate.wait(20)
        if self.fail == name:
            raise self.error

    def init(self, project, name, config, resume, id=None):  # noqa: A002
        self.started = {"project": project, "name": name, "config": config, "resume": resume}
        self.started["id"] = id
        self._call("init")

    def log(self, data, step):
        self._call("log")
        self.records.append((step, data))

    def finish(self):
        self._call("finish")
        self.is_finished = True


@pytest.fixture
def package(monkeypatch):
    package = FakePackage()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    return package


@pytest.fixture
def make(toy_config, tmp_path):
    def make(setting="wandb"):
        toy_config.log.tracker = setting
        return tracker.Tracker(toy_config, tmp_path / "run7")

    return make


def test_records_arrive_in_order_with_the_config(package, make, toy_config):
    toy_config.data.manifest = "https://host/a.csv?token=secret"
    one = make("wandb:my project")
    for step in (1, 2):
        one.write({"step": step, "loss": 1.0 / step, "mfu": None})
    one.close()
    assert package.records == [(1, {"loss": 1.0}), (2, {"loss": 0.5})] and package.is_finished
    assert package.started["project"] == "my project" and package.started["name"] == "run7"
    assert package.started["config"]["batch_size"] == 8
    assert "secret" not in str(package.started["config"])


def test_a_resumed_run_has_the_same_id(package, make):
    ids = []
    for _ in range(2):
        make().close()
        ids.append(package.started["id"])
    assert ids[0] == ids[1] and package.started["resume"] == "allow"


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["init", "log", "finish"])
def test_a_failure_is_one_warning(package, make, caplog, function, error):
    package.fail, package.error = function, error
    one = make()
    for step in range(1, 5):
        one.write({"step": step, "loss": 1.0})
    one.close()
    (message,) = caplog.messages
    assert message.startswith("wandb does not get all metrics: " + type(error).__name__)


def test_a_tracker_that_hangs_does_not_stall_the_run(package, make, caplog, monkeypatch):
    monkeypatch.setattr(tracker, "_CLOSE_SECONDS", 0.1)
    package.gate.clear()
    one, start = make(), time.monotonic()
    for step in range(1, 1500):
        one.write({"step": step, "loss": 1.0})
    one.close()
    assert time.monotonic() - start < 10
    (message,) = caplog.messages
    assert "too slow" in message
    package.gate.set()


def test_a_package_that_does_not_finish_is_a_warning(package, make, caplog, monkeypatch):
    monkeypatch.setattr(tracker, "_CLOSE_SECONDS", 0.1)
    package.gate.clear()
    make().close()
    assert "does not finish" in caplog.text
    package.gate.set()


def test_other_processes_send_nothing(package, make, monkeypatch):
    monkeypatch.setattr(tracker.jax, "process_index", lambda: 1)
    one = make()
    one.write({"step": 1})
    one.close()
    assert not package.started


def test_a_missing_package_is_an_error(make, monkeypatch):
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package trackio: pip install trackio"):
        make("trackio")


@pytest.mark.parametrize("name", ["wandb/settings", ".wandb/settings", "config-defaults.yaml"])
def test_wandb_reads_no_file_of_the_current_folder(package, make, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("[default]\nbase_url = http://127.0.0.1:1\n")
    with pytest.raises(UserError, match=f"wandb would read the file {name} of the current"):
        make()
    assert not package.started


def test_wandb_starts_no_git(package, make, monkeypatch):
    monkeypatch.delenv("WANDB_DISABLE_GIT")
    seen = []
    monkeypatch.setattr(package, "init", lambda: seen.append(os.environ["WANDB_DISABLE_GIT"]))
    make().close()
    assert seen == ["true"]


def test_an_unknown_package_is_an_error(toy_config):
    toy_config.log.tracker = "os:project"
    with pytest.raises(UserError, match=r"config.log.tracker='os:project' must be"):
        reporter.check_config(toy_config)


def test_without_a_tracker_nothing_starts(make):
    before = threading.active_count()
    one = make("")
    one.write({"step": 1})
    assert threading.active_count() == before
    one.close()
