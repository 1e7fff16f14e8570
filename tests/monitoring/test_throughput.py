import jax
import numpy as np
import pytest

from invnext_jax.monitoring import throughput as throughput_lib
from invnext_jax.planning import devices


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_find_device_matches_the_kinds_that_jax_reports(kind, name):
    assert devices.find_device(kind) is devices.DEVICES[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090"])
def test_find_device_returns_none_for_other_devices(kind):
    assert devices.find_device(kind) is None


def make(flops, measure, count=2, float32=0):
    split = {"bfloat16": flops, "float32": float32}
    return throughput_lib.Throughput(split, jax.devices()[:count], measure=measure)


def test_unknown_device_has_no_mfu():
    throughput = make(flops=8e12, measure=False)
    assert "no MFU: the peak of 'cpu' is unknown" in throughput.describe()
    assert throughput.compute_rates(0.5) == {
        "tflops_per_device": 2.0
    }  # 8 TFLOP / 2 devices * 0.5 / s


def test_mfu_is_the_share_of_the_peak(monkeypatch):
    monkeypatch.setattr(throughput_lib, "find_device", lambda _: devices.DEVICES["h200"])
    throughput = make(flops=2 * 989e12, measure=False)
    assert throughput.compute_rates(0.25)["mfu"] == pytest.approx(0.25)
    assert throughput.describe().endswith("peak 989 TFLOP/s (dense bfloat16)")


def test_float32_products_count_with_the_rates_of_float32(monkeypatch):
    monkeypatch.setattr(throughput_lib, "find_device", lambda _: devices.DEVICES["h200"])
    rates = {"bfloat16": 8e12, "float32": 2e12}
    monkeypatch.setattr(throughput_lib, "measure_matmul_flops", lambda _, dtype: rates[dtype])
    throughput = make(flops=989e12, float32=67e12, measure=True, count=1)
    found = throughput.compute_rates(0.25)
    assert found["mfu"] == pytest.approx(0.5)  # each dtype takes one second
    assert found["ceiling_share"] == pytest.approx(0.25 * (989 / 8 + 67 / 2))
    assert found["tflops_per_device"] == pytest.approx(0.25 * (989 + 67))
    text = throughput.describe()
    assert "67 TFLOP/s (float32)" in text and "measured ceiling 2 TFLOP/s (float32)" in text


def test_ceiling_is_divided_by_the_fake_devices(monkeypatch):
    assert throughput_lib.measure_matmul_flops(jax.devices()[0], "float32", size=64) > 1e6
    monkeypatch.setattr(throughput_lib, "measure_matmul_flops", lambda *_: 4e12)
    throughput = make(flops=2e12, measure=True, count=2)
    assert throughput.compute_rates(1.0)["ceiling_share"] == pytest.approx(1e12 / 2e12)


def test_zero_flops_give_no_rates():
    assert make(flops=0, measure=True).compute_rates(1.0) == {}


def test_rates_cover_the_time_since_the_last_measurement(monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 24.0])
    monkeypatch.setattr(throughput_lib.time, "perf_counter", lambda: next(clock))
    timer = throughput_lib.StepTimer(batch_size=8)
    timer.restart(step=5)  # at 10 s
    timer.add_data_wait(1.0)
    rates = timer.measure(step=7)  # at 14 s; reads the clock once more for the next measurement
    assert rates == {"clips_per_second": 2 * 8 / 4.0, "data_wait": 0.25}


@pytest.fixture
def clock(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(throughput_lib.time, "perf_counter", lambda: clock[0])
    return clock


def test_measurement_starts_again_at_each_logged_step(clock):
    times = throughput_lib.HostTimer()
    times.restart(10)
    times.add_data_wait(3.0)
    times.add_data_wait(1.0)
    clock[0] += 8.0
    counts = {"dropped_videos": 7, "failed_reads": 2}
    expected = [2.0, 0.5, 5.0, 7, 2]  # seconds per step, data wait, clips/s, counts
    np.testing.assert_array_equal(times.measure(14, counts, (20, 4.0)), np.float32(expected))
    clock[0] += 1.0
    expected = [1.0, 0.0, 6.0, 0, 0]
    np.testing.assert_array_equal(times.measure(15, {}, (23, 4.5)), np.float32(expected))
    clock[0] += 1.0
    assert np.isnan(times.measure(16, {}, (23, 4.5))[2])  # nothing was decoded
    assert np.isnan(times.measure(17, {}, (0, 0.0))[2])  # a new pool


def test_single_process_logs_its_own_numbers():
    values = np.float32([0.5, 0.1, np.nan, 3, 0])
    assert throughput_lib.own_record(values) == {"step_seconds": 0.5}
    values[2] = 12.0
    assert throughput_lib.own_record(values) == {"step_seconds": 0.5, "decode_rate": 12.0}
