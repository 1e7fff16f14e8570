import json
import subprocess
import sys
import time
import types

import jax

from invnext_jax.monitoring import watchdog as watchdog_lib
from invnext_jax.monitoring.watchdog import Heard, Watchdog, list_stragglers


def wait_for(path, text, seconds=10):
    deadline = time.monotonic() + seconds
    while text not in path.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.read_text()


def test_a_stall_is_told_once_with_all_threads_host_and_step(tmp_path):
    with open(tmp_path / "log", "w") as out:
        watchdog = Watchdog(0.2 / 60, out).start()
        watchdog.beat(7, "the wait for data")
        said = wait_for(tmp_path / "log", "Thread")
        time.sleep(0.5)
        watchdog.close()
    assert "after step 7, in the wait for data" in said
    assert "in wait_for" in said  # this thread's stack
    assert (tmp_path / "log").read_text().count("watchdog: no step for") == 1


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    with open(tmp_path / "log", "w") as out:
        watchdog = Watchdog(1.0 / 60, out).start()
        for step in range(30):
            watchdog.beat(step, "the step")
            time.sleep(0.05)
        watchdog.close()
    assert (tmp_path / "log").read_text() == ""


def test_a_thread_that_never_lets_go_of_the_interpreter_is_told_too():
    script = (
        "import sys, time\n"
        "from invnext_jax.monitoring.watchdog import Watchdog\n"
        "Watchdog(0.2 / 60).start().beat(1, 'the step')\n"
        "time.sleep(0.3)\n"
        "sys.setswitchinterval(1000)\n"  # as C code that holds the lock
        "start = time.monotonic()\n"
        "while time.monotonic() - start < 2: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Timeout (" in done.stderr


def test_an_output_without_a_descriptor_is_no_trouble(capsys):
    watchdog = Watchdog(0.05 / 60).start()
    watchdog.beat(1, "the step")
    time.sleep(0.3)
    assert watchdog._thread.is_alive()
    watchdog.close()


def test_no_minutes_no_watchdog():
    assert Watchdog(0).start()._thread is None


class Store(dict):
    """Stands for the key-value store of jax.distributed."""

    def key_value_set(self, key, text, allow_overwrite):
        assert allow_overwrite or key not in self
        self[key] = text

    def key_value_dir_get(self, folder):
        return [(key, text) for key, text in self.items() if key.startswith(folder)]


def test_process_0_names_what_each_process_last_said(tmp_path, monkeypatch):
    said = json.dumps([41, "the wait for data", 80, "host7"])
    store = Store({"invnext_jax/heartbeat/1": said})
    state = types.SimpleNamespace(client=store)
    monkeypatch.setattr(watchdog_lib.distributed, "global_state", state)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with open(tmp_path / "log", "w") as out:
        watchdog = Watchdog(0.2 / 60, out).start()
        watchdog.beat(42, "the step")
        said = wait_for(tmp_path / "log", "Thread")
        watchdog.close()
    assert said.startswith(
        "watchdog: process 1: step 41, in the wait for data for 80 s, host7 (said 0 s ago)\n"
        "watchdog: process 0: step 42, in the step for 0 s, "
    )


def test_the_process_that_lags_is_named_first_then_the_longest_silent():
    heard = {
        0: Heard(42, "the step", 300, "a", 1000.0),  # waits for 1, and for longer than that
        1: Heard(41, "the wait for data", 80, "b", 1000.0),
        2: Heard(42, "the step", 290, "c", 900.0),  # says nothing any more
        3: Heard(42, "the step", 300, "d", 1001.0),
    }
    lines = list_stragglers(heard, 1010.0)
    assert [line.split()[2] for line in lines] == ["1:", "2:", "0:", "3:"]
    assert lines[1] == "watchdog: process 2: step 42, in the step for 290 s, c (said 110 s ago)"
