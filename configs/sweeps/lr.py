"""Learning rate and batch size of Stage 1.

    python launch/sweep.py --config=configs/sweeps/lr.py:tiny --workdir=sweeps/lr --seeds=0,1

The learning rate is that of a batch of 256 clips, which is scaled linearly with the batch size. The
number of epochs is the same in all arms.
"""

from collections.abc import Iterator

from configs.sweeps import evaluations
from invnext_jax.sweeps.arms import Arm, chain, grid, make_arm

COLUMNS = evaluations.COLUMNS
# Learning rate for a batch of 256 clips, and batch size, of the default configs.
_DEFAULTS = {"base": (1e-3, 2048), "tiny": (16e-3, 32)}


def sweep(variant: str = "base") -> Iterator[Arm]:
    """Yields all combinations of learning rates and batch sizes of a variant, base or tiny."""
    if variant not in _DEFAULTS:
        raise ValueError(f"unknown variant {variant!r}: choose base or tiny")
    rate, batch = _DEFAULTS[variant]
    if variant == "tiny":
        # The tiny config sets steps and rates as numbers. -1: they follow the batch size again.
        overrides = {"stage1.total_steps": -1, "stage1.epochs": 12.0}
        overrides |= {"stage1.optimizer.learning_rate": -1.0, "stage1.optimizer.warmup_steps": -1}
        overrides |= {"stage1.optimizer.min_learning_rate": -1.0}
        overrides |= {"stage1.optimizer.warmup_epochs": 0.6}
        steps = chain(stage1="configs/stage1.py:tiny", world=evaluations.WORLD)
    else:
        steps = chain(stage1="configs/stage1.py:base", k400=evaluations.K400, ssv2=evaluations.SSV2)
        overrides = {"stage1.data.manifest": "data/kmash.csv"}
    axes = {
        "stage1.optimizer.base_learning_rate": (rate / 2, rate, 2 * rate),
        "stage1.batch_size": (batch // 2, batch, 2 * batch),
    }
    for point in grid(axes):
        values = tuple(point.values())
        yield make_arm(
            steps,
            {**overrides, **point, "name": f"rate {values[0]:g}, batch {values[1]}"},
            is_baseline=values == (rate, batch),
        )
