import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading

import pytest

from invnext_jax.multihost import preemption as preemption_lib
from invnext_jax.multihost.preemption import Preemption

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def hangups_count():
    """Whoever runs the tests by nohup has them ignore hang-ups, and their processes too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_a_request(number, monkeypatch):
    monkeypatch.setattr(preemption_lib, "_leave_terminal", lambda: None)
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.requested
        os.kill(os.getpid(), number)
        assert preemption.requested
        assert preemption.signal_name == number.name
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_process_at_once():
    script = (
        "import os, signal, sys, time\n"
        "from invnext_jax.multihost.preemption import Preemption\n"
        "with Preemption():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('going on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "going on\n"


HANGUP = """
import os, signal, time
from invnext_jax.multihost.preemption import Preemption
with Preemption() as preemption:
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while not preemption.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)  # kernel and shell may both send one
    print("saving where no terminal is", flush=True)
    open("said", "w").write(preemption.signal_name)
"""


def test_a_closed_terminal_is_a_request_and_no_error(tmp_path):
    mine, its = pty.openpty()
    arguments = {"cwd": tmp_path, "stdin": its, "stdout": its, "stderr": its}
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", HANGUP], start_new_session=True, env=environ, **arguments
    )
    os.close(its)
    assert os.read(mine, 100).split() == [b"ready"]
    os.close(mine)  # as sshd does
    run.send_signal(signal.SIGHUP)
    assert run.wait(60) == 0
    assert (tmp_path / "said").read_text() == "SIGHUP"


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_installed():
    seen = []

    def enter():
        with Preemption() as preemption:
            seen.append(preemption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
