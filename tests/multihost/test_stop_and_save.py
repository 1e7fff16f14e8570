import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from invnext_jax.multihost import stop_and_save as stop_and_save_lib
from invnext_jax.multihost.stop_and_save import HostFlags, Preemption, StopAndSave

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("default_signal_handlers")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_first_signal_requests_a_stop(number, monkeypatch):
    monkeypatch.setattr(stop_and_save_lib, "redirect_output_to_devnull", lambda: None)
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.requested
        os.kill(os.getpid(), number)
        assert preemption.requested
        assert preemption.signal_name == number.name
    assert signal.getsignal(number) is before


def test_second_signal_ends_the_process_at_once():
    script = (
        "import os, signal, sys, time\n"
        "from invnext_jax.multihost.stop_and_save import Preemption\n"
        "with Preemption():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('continues', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "continues\n"


HANGUP = """
import os, signal, time
from invnext_jax.multihost.stop_and_save import Preemption
with Preemption() as preemption:
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while not preemption.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)  # kernel and shell may both send one
    print("a line for a closed terminal", flush=True)
    open("signal", "w").write(preemption.signal_name)
"""


def test_closed_terminal_requests_a_stop_without_an_error(tmp_path):
    terminal, child = pty.openpty()
    arguments = {"cwd": tmp_path, "stdin": child, "stdout": child, "stderr": child}
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", HANGUP], start_new_session=True, env=environ, **arguments
    )
    os.close(child)
    assert os.read(terminal, 100).split() == [b"ready"]
    os.close(terminal)  # as sshd does
    run.send_signal(signal.SIGHUP)
    assert run.wait(60) == 0
    assert (tmp_path / "signal").read_text() == "SIGHUP"


def test_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_handler_is_installed_outside_the_main_thread():
    requested = []

    def enter():
        with Preemption() as preemption:
            requested.append(preemption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert requested == [False]


def make_stop_and_save(monkeypatch, every_minutes):
    """Returns a single-process `StopAndSave`, and a list with the time of its clock in seconds."""
    clock = [0.0]
    monkeypatch.setattr(stop_and_save_lib.time, "monotonic", lambda: clock[0])
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return StopAndSave(Preemption(), every_minutes, mesh), clock


def test_saves_once_the_interval_has_passed(monkeypatch):
    stop_and_save, clock = make_stop_and_save(monkeypatch, every_minutes=2)
    stop_and_save.reset_timer(0)
    clock[0] = 119.0
    assert stop_and_save.poll(1) == HostFlags(stop=False, save=False)
    clock[0] = 120.0
    assert stop_and_save.poll(2) == HostFlags(stop=False, save=True)
    stop_and_save.reset_timer(2)
    clock[0] = 239.0
    assert not stop_and_save.poll(3).save
    clock[0] = 240.0
    assert stop_and_save.poll(4).save


def test_never_saves_the_step_that_was_saved_or_restored(monkeypatch):
    stop_and_save, clock = make_stop_and_save(monkeypatch, every_minutes=1)
    for step in (0, 7):  # the start of a run, and a saved or restored step
        stop_and_save.reset_timer(step)
        clock[0] += 1e6
        assert not stop_and_save.poll(step).save
        assert stop_and_save.poll(step + 1).save


def test_interval_of_zero_never_saves(monkeypatch):
    stop_and_save, clock = make_stop_and_save(monkeypatch, every_minutes=0)
    clock[0] = 1e9
    assert stop_and_save.poll(5) == HostFlags(stop=False, save=False)
