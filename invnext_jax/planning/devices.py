"""Data-sheet values of accelerators: peak throughput, memory size and bandwidths."""

from collections.abc import Mapping
from typing import NamedTuple


class Device(NamedTuple):
    """Data-sheet values of one accelerator.

    Attributes:
      peak: peak bfloat16 throughput without sparsity, in FLOP/s.
      float32_peak: peak throughput of float32 products with the highest precision, in FLOP/s.
        GPUs compute them without tensor cores, and TPUs in six bfloat16 passes.
      memory: size of the device memory in bytes.
      bandwidth: bandwidth of the device memory, in bytes/s.
      link: bandwidth of one device within its node or slice, in bytes/s per direction.
      node: number of devices in a node or slice.
      network: bandwidth from one device to other nodes, in bytes/s per direction.
      clock: cycles per second of a TPU, in which its compiler estimates time; 0 if not known.
    """

    peak: float
    float32_peak: float
    memory: float
    bandwidth: float
    link: float
    node: int
    network: float
    clock: float = 0.0

    def product_seconds(self, flops: Mapping[str, float]) -> float:
        """Returns the minimum time of matrix products on this device, in seconds.

        Args:
          flops: number of FLOPs by dtype of the products, "float32" or "bfloat16".
        """
        return flops["bfloat16"] / self.peak + flops["float32"] / self.float32_peak


_GB, _TB, _TFLOPS, _GHZ = 1e9, 1e12, 1e12, 1e9


# From NVIDIA's data sheets (A100, H100 SXM, H200, B200, L40S), with a network card of 200 or 400
# Gbit/s per GPU, and from Google's pages on TPU v4, v5e, v5p and v6e. The link bandwidth of a TPU
# is the sum over all interchip links of a chip, in one direction. The float32 peaks of TPUs are a
# sixth of the bfloat16 peaks. The clock of a TPU is its peak divided by the FLOPs of a cycle: of 4
# (v5e) or 8 (v5p) matrix units of 128 x 128, or of 4 of 256 x 256 (v6e). For large products, the
# compiler's estimates correspond to 88 %, 90 % and 70 % of this peak.
DEVICES = {
    "a100": Device(312 * _TFLOPS, 19.5 * _TFLOPS, 80 * _GB, 2.04 * _TB, 300 * _GB, 8, 25 * _GB),
    "h100": Device(989 * _TFLOPS, 67 * _TFLOPS, 80 * _GB, 3.35 * _TB, 450 * _GB, 8, 50 * _GB),
    "h200": Device(989 * _TFLOPS, 67 * _TFLOPS, 141 * _GB, 4.8 * _TB, 450 * _GB, 8, 50 * _GB),
    "b200": Device(2250 * _TFLOPS, 75 * _TFLOPS, 180 * _GB, 7.7 * _TB, 900 * _GB, 8, 50 * _GB),
    "l40s": Device(362 * _TFLOPS, 91.6 * _TFLOPS, 48 * _GB, 0.864 * _TB, 32 * _GB, 8, 25 * _GB),
    "v4": Device(275 * _TFLOPS, 45.8 * _TFLOPS, 32 * _GB, 1.2 * _TB, 300 * _GB, 4096, 6 * _GB),
    "v5e": Device(
        197 * _TFLOPS, 32.8 * _TFLOPS, 16 * _GB, 0.82 * _TB, 200 * _GB, 256, 6 * _GB, 1.5 * _GHZ
    ),
    "v5p": Device(
        459 * _TFLOPS, 76.5 * _TFLOPS, 95 * _GB, 2.765 * _TB, 600 * _GB, 8960, 6 * _GB, 1.75 * _GHZ
    ),
    "v6e": Device(
        918 * _TFLOPS, 153 * _TFLOPS, 32 * _GB, 1.64 * _TB, 448 * _GB, 256, 12 * _GB, 1.75 * _GHZ
    ),
}


_KINDS = {  # substring of the lower-case `device_kind` -> name in `DEVICES`; the first match counts
    "h200": "h200",
    "h100 pcie": "",  # not in the table: its values differ from those of the SXM module
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


def find_name(kind: str) -> str:
    """Returns the name in `DEVICES` of a `jax.Device.device_kind`; "" if it is unknown."""
    return next((name for part, name in _KINDS.items() if part in kind.lower()), "")


def find_device(kind: str) -> Device | None:
    """Returns the data-sheet values for a `jax.Device.device_kind`, or None if it is unknown."""
    return DEVICES.get(find_name(kind))
