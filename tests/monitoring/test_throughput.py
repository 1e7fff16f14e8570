import jax
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
    assert found["mfu"] == pytest.approx(0.5)  # each of both takes a second at its peak
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
