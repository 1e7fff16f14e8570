"""Evaluations that several sweeps use, with the columns of their tables."""

from invnext_jax.sweeps.arms import Column, Step

# Linear probes as in Tables 1 to 4. Set the folders of the data sets on the command line, as in
# --set=k400.data.root=/data/k400. The numbers of videos are those of the published lists.
K400 = Step(
    "k400", "configs/eval/k400_linear.py", {"data.root": "data/k400"}, videos=(240_000, 20_000)
)
SSV2 = Step(
    "ssv2", "configs/eval/ssv2_linear.py", {"data.root": "data/ssv2"}, videos=(168_913, 24_777)
)
# The paper does not say how many windows of ScanNet it uses; these numbers only predict the cost.
SCANNET = Step(
    "scannet",
    "configs/eval/tasks/depth.py",
    {"depth.data": "scannet", "depth.root": "data/scannet", "data.frames": 8},
    videos=(100_000, 20_000),
)
# Linear probe on the synthetic world.
WORLD = Step("world", "configs/eval/tasks/linear_probe.py:tiny", {"controls": False})

# A sweep has only the columns whose step it has.
COLUMNS = {
    "K400": Column("k400", metric="top1", input="pool", optional=True),
    "SSv2": Column("ssv2", metric="top1", input="frames", optional=True),
    "ScanNet delta1": Column("scannet", metric="delta1", optional=True),
    "shape": Column("world", metric="top1", task="shape", input="frames", optional=True),
    "color": Column("world", metric="top1", task="color", input="frames", optional=True),
    "motion": Column("world", metric="top1", task="motion", input="frames", optional=True),
}
