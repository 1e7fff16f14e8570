"""Mask ratio of Stage 1.

python launch/sweep.py --config=configs/sweeps/mask_ratio.py:tiny --workdir=sweeps/mask_ratio
"""

from collections.abc import Iterator

from configs.sweeps import evaluations
from invnext_jax.sweeps.arms import Arm, chain, make_arm

COLUMNS = evaluations.COLUMNS
RATIOS = (0.5, 0.65, 0.75, 0.8, 0.9)
TINY_RATIOS = (0.5, 0.625, 0.75, 0.875)  # multiples of a patch; a frame has 16
RELEASED = 0.75  # of the released scripts; the paper's text says 0.8


def sweep(variant: str = "base") -> Iterator[Arm]:
    """Yields an arm for each mask ratio, with a variant of configs/stage1.py."""
    if variant == "tiny":
        steps, overrides = chain(stage1="configs/stage1.py:tiny", world=evaluations.WORLD), {}
    else:
        stage1 = f"configs/stage1.py:{variant}"
        steps = chain(stage1=stage1, k400=evaluations.K400, ssv2=evaluations.SSV2)
        overrides = {"stage1.data.manifest": "data/kmash.csv"}
    for ratio in TINY_RATIOS if variant == "tiny" else RATIOS:
        yield make_arm(
            steps,
            {**overrides, "stage1.mask.ratio": ratio, "name": f"mask ratio {ratio}"},
            is_baseline=ratio == RELEASED,
        )
