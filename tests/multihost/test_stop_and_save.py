import jax
import numpy as np
from jax.sharding import Mesh

from invnext_jax.multihost import stop_and_save as stop_and_save_lib
from invnext_jax.multihost.preemption import Preemption
from invnext_jax.multihost.stop_and_save import HostFlags, StopAndSave


def make_stop_and_save(monkeypatch, every_minutes):
    """`StopAndSave` of one process, and the time of its clock in seconds."""
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
    for step in (0, 7):  # a new run's start, and a restored or just saved one
        stop_and_save.reset_timer(step)
        clock[0] += 1e6
        assert not stop_and_save.poll(step).save
        assert stop_and_save.poll(step + 1).save


def test_interval_of_zero_never_saves(monkeypatch):
    stop_and_save, clock = make_stop_and_save(monkeypatch, every_minutes=0)
    clock[0] = 1e9
    assert stop_and_save.poll(5) == HostFlags(stop=False, save=False)
