"""Data-sheet figures of accelerators: dense bfloat16 peak, memory, bandwidths."""

from typing import NamedTuple


class Device(NamedTuple):
    """One accelerator as the plan and the log see it.

    Attributes:
        peak: dense bfloat16 FLOP/s, without sparsity.
        memory: bytes of its memory.
        bandwidth: bytes/s of that memory.
        link: bytes/s that one device sends to its neighbours of a node or slice, one direction.
        node: devices joined by such links; beyond it `network` holds.
        network: bytes/s of one device to other nodes, one direction.
    """

    peak: float
    memory: float
    bandwidth: float
    link: float
    node: int
    network: float


_GB, _TB, _TFLOPS = 1e9, 1e12, 1e12


# From the data sheets of NVIDIA (A100, H100 SXM, H200, B200, L40S; a network card of 200 or
# 400 Gbit/s for each GPU) and Google's pages "TPU v4", "v5e", "v5p", "v6e" (interchip links: all of
# a chip, one direction).
DEVICES = {
    "a100": Device(312 * _TFLOPS, 80 * _GB, 2.04 * _TB, 300 * _GB, 8, 25 * _GB),
    "h100": Device(989 * _TFLOPS, 80 * _GB, 3.35 * _TB, 450 * _GB, 8, 50 * _GB),
    "h200": Device(989 * _TFLOPS, 141 * _GB, 4.8 * _TB, 450 * _GB, 8, 50 * _GB),
    "b200": Device(2250 * _TFLOPS, 180 * _GB, 7.7 * _TB, 900 * _GB, 8, 50 * _GB),
    "l40s": Device(362 * _TFLOPS, 48 * _GB, 0.864 * _TB, 32 * _GB, 8, 25 * _GB),
    "v4": Device(275 * _TFLOPS, 32 * _GB, 1.2 * _TB, 300 * _GB, 4096, 6 * _GB),
    "v5e": Device(197 * _TFLOPS, 16 * _GB, 0.82 * _TB, 200 * _GB, 256, 6 * _GB),
    "v5p": Device(459 * _TFLOPS, 95 * _GB, 2.765 * _TB, 600 * _GB, 8960, 6 * _GB),
    "v6e": Device(918 * _TFLOPS, 32 * _GB, 1.64 * _TB, 448 * _GB, 256, 12 * _GB),
}


_KINDS = {  # part of `jax.Device.device_kind`, in lower case -> name in `DEVICES`; first hit counts
    "h200": "h200",
    "h100 pcie": "",  # other peaks than the SXM module's
    "h100 nvl": "",
    "h100": "h100",
    "b200": "b200",
    "l40s": "l40s",
    "a100": "a100",
    "tpu v4 lite": "",
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}


def find_device(kind: str) -> Device | None:
    """What is known of a `jax.Device.device_kind`, or None."""
    for part, name in _KINDS.items():
        if part in kind.lower():
            return DEVICES.get(name)
    return None
