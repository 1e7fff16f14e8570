import json
import subprocess
import sys
import time
import types

import jax

from invnext_jax.monitoring import watchdog as watchdog_lib
from invnext_jax.monitoring.watchdog import Heartbeat, Watchdog, list_stragglers


def wait_for(path, text, seconds=10):
    deadline = time.monotonic() + seconds
    while text not in path.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.read_text()


def test_stall_is_reported_once_with_all_threads_and_the_step(tmp_path):
    with open(tmp_path / "log", "w") as out:
        watchdog = Watchdog(0.2 / 60, out).start()
        watchdog.heartbeat(7, "the wait for data")
        report = wait_for(tmp_path / "log", "Thread")
        time.sleep(0.5)
        watchdog.close()
    assert "after step 7, in the wait for data" in report
    assert "in wait_for" in report  # this thread's stack
    assert (tmp_path / "log").read_text().count("watchdog: no step for") == 1


def test_running_steps_are_not_reported(tmp_path):
    with open(tmp_path / "log", "w") as out:
        watchdog = Watchdog(1.0 / 60, out).start()
        for step in range(30):
            watchdog.heartbeat(step, "the step")
            time.sleep(0.05)
        watchdog.close()
    assert (tmp_path / "log").read_text() == ""


def test_stall_is_reported_while_the_interpreter_lock_is_held():
    script = (
        "import sys, time\n"
        "from invnext_jax.monitoring.watchdog import Watchdog\n"
        "Watchdog(0.2 / 60).start().heartbeat(1, 'the step')\n"
        "time.sleep(0.3)\n"
        "sys.setswitchinterval(1000)\n"  # simulates C code that holds the GIL
        "start = time.monotonic()\n"
        "while time.monotonic() - start < 2: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Timeout (" in done.stderr


def test_output_without_a_file_descriptor_is_allowed(capsys):
    watchdog = Watchdog(0.05 / 60).start()
    watchdog.heartbeat(1, "the step")
    time.sleep(0.3)
    assert watchdog._thread.is_alive()
    watchdog.close()


def test_zero_minutes_start_no_thread():
    assert Watchdog(0).start()._thread is None


class Store(dict):
    """Replaces the key-value store of jax.distributed."""

    def key_value_set(self, key, text, allow_overwrite):
        assert allow_overwrite or key not in self
        self[key] = text

    def key_value_dir_get(self, folder):
        return [(key, text) for key, text in self.items() if key.startswith(folder)]


def test_process_0_lists_the_last_heartbeat_of_each_process(tmp_path, monkeypatch):
    beat = json.dumps([41, "the wait for data", 80, "host7"])
    store = Store({"invnext_jax/heartbeat/1": beat})
    state = types.SimpleNamespace(client=store)
    monkeypatch.setattr(watchdog_lib.distributed, "global_state", state)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with open(tmp_path / "log", "w") as out:
        watchdog = Watchdog(0.2 / 60, out).start()
        watchdog.heartbeat(42, "the step")
        report = wait_for(tmp_path / "log", "Thread")
        watchdog.close()
    assert report.startswith(
        "watchdog: process 1: step 41, in the wait for data for 80 s, host7 (reported 0 s ago)\n"
        "watchdog: process 0: step 42, in the step for 0 s, "
    )


def test_stragglers_are_ordered_by_step_then_by_start_of_activity():
    heartbeats = {
        0: Heartbeat(42, "the step", 300, "a", 1000.0),  # waits for process 1
        1: Heartbeat(41, "the wait for data", 80, "b", 1000.0),
        2: Heartbeat(42, "the step", 290, "c", 900.0),  # has stopped reporting
        3: Heartbeat(42, "the step", 300, "d", 1001.0),
    }
    lines = list_stragglers(heartbeats, 1010.0)
    assert [line.split()[2] for line in lines] == ["1:", "2:", "0:", "3:"]
    assert lines[1] == "watchdog: process 2: step 42, in the step for 290 s, c (reported 110 s ago)"
