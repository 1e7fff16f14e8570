import threading

import jax.numpy as jnp

from invnext_jax.monitoring import profiling


def test_new_threads_get_no_profile_function_during_a_trace(tmp_path):
    # Python 3.11 ends threads that start while another thread installs a profile function.
    profiler = profiling.Profiler((1, 3), tmp_path)
    profiler.start_if_due(1)
    assert not list(tmp_path.rglob("*.xplane.pb"))
    profiler.start_if_due(2)
    assert threading.getprofile() is None
    assert profiler.stop_if_due(2, jnp.zeros(1)) is None
    assert profiler.stop_if_due(3, jnp.zeros(1)) == tmp_path / "profile"
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
