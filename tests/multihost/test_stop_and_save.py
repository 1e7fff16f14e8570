import jax
import numpy as np
from jax.sharding import Mesh

from invnext_jax.multihost import stop_and_save as stop_and_save_lib
from invnext_jax.multihost.preemption import Preemption
from invnext_jax.multihost.stop_and_save import HostFlags, StopAndSave


def make(monkeypatch, every_minutes):
    """One process's agreement, and the hands of its clock in seconds."""
    clock = [0.0]
    monkeypatch.setattr(stop_and_save_lib.time, "monotonic", lambda: clock[0])
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return StopAndSave(Preemption(), every_minutes, mesh), clock


def test_saves_when_the_time_is_up_and_not_before(monkeypatch):
    agreement, clock = make(monkeypatch, every_minutes=2)
    agreement.reset_timer(0)
    clock[0] = 119.0
    assert agreement.poll(1) == HostFlags(stop=False, save=False)
    clock[0] = 120.0
    assert agreement.poll(2) == HostFlags(stop=False, save=True)
    agreement.reset_timer(2)
    clock[0] = 239.0
    assert not agreement.poll(3).save
    clock[0] = 240.0
    assert agreement.poll(4).save


def test_never_saves_the_step_it_saved_or_restored_however_late_it_is(monkeypatch):
    agreement, clock = make(monkeypatch, every_minutes=1)
    for step in (0, 7):  # a new run's start, and a restored or just saved one
        agreement.reset_timer(step)
        clock[0] += 1e6
        assert not agreement.poll(step).save
        assert agreement.poll(step + 1).save


def test_no_clock_no_saves(monkeypatch):
    agreement, clock = make(monkeypatch, every_minutes=0)
    clock[0] = 1e9
    assert agreement.poll(5) == HostFlags(stop=False, save=False)
