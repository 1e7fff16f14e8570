import os
import signal
import subprocess
import sys
import threading

import pytest

from invnext_jax.runtime.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number):
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
        "from invnext_jax.runtime.preemption import Preemption\n"
        "with Preemption():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('going on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "going on\n"


def test_outside_the_main_thread_nothing_is_installed():
    seen = []

    def enter():
        with Preemption() as preemption:
            seen.append(preemption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
