"""Model sizes, with both stages.

python launch/sweep.py --config=configs/sweeps/sizes.py:tiny --workdir=sweeps/sizes

The variant "base" has the sizes Base, Large and 1B.
"""

from collections.abc import Iterator

from configs.sweeps import evaluations
from invnext_jax.sweeps.arms import Arm, chain, make_arm

COLUMNS = evaluations.COLUMNS
SIZES = ("base", "large", "1b")
WIDTHS = (32, 64, 128)  # of the tiny variant
_BASELINE = 64


def sweep(variant: str = "base") -> Iterator[Arm]:
    """Yields an arm for each size, or for each width of the tiny variant."""
    if variant == "tiny":
        yield from _widths()
        return
    if variant != "base":
        raise ValueError(f"unknown variant {variant!r}: choose base or tiny")
    for size in SIZES:
        steps = chain(
            stage1=f"configs/stage1.py:{size}",
            stage2=f"configs/stage2.py:{size}",
            k400=evaluations.K400,
            ssv2=evaluations.SSV2,
        )
        manifest = {f"{stage}.data.manifest": "data/kmash.csv" for stage in ("stage1", "stage2")}
        yield make_arm(steps, {**manifest, "name": size}, is_baseline=size == "base")


def _widths() -> Iterator[Arm]:
    steps = chain(
        stage1="configs/stage1.py:tiny", stage2="configs/stage2.py:tiny", world=evaluations.WORLD
    )
    for width in WIDTHS:
        sizes = {"width": width, "mlp_width": 4 * width, "pool_width": width}
        overrides = {
            f"{stage}.encoder.{name}": value
            for stage in ("stage1", "stage2")
            for name, value in sizes.items()
        }
        yield make_arm(
            steps, {**overrides, "name": f"width {width}"}, is_baseline=width == _BASELINE
        )
