"""Tables 1 to 4 of the paper: all rows with their evaluations and the published values.

    python launch/sweep.py --config=configs/sweeps/paper.py:table1a --workdir=sweeps/t1a
    python launch/sweep.py --config=configs/sweeps/paper.py:table3,tiny --workdir=sweeps/t3
    python launch/sweep.py --config=configs/sweeps/paper.py:all --workdir=sweeps/paper --dry_run \
        --device=h100 --devices_per_job=8

The rows are those of configs/ablations.py. Stage 2 starts from the Stage 1 model with all
components, which is trained once and also evaluated. Data sets are expected in `data/kmash.csv`,
`data/k400`, `data/ssv2` and `data/scannet`, and weights in `weights`. Other paths are set on the
command line, as in --set=train.data.manifest=/data/kmash.csv.

With "tiny", the small variants of the rows are trained on the synthetic world. Weights of a small
text model, of CLIP and of DINOv2 do not exist. Rows that only differ in them are left out, and the
predictor of the other rows starts from random values.

The paper does not state the number of frames of the probes in Table 4. Here, it is that of the row.
"""

from collections.abc import Iterator

from configs import ablations
from configs.sweeps import evaluations
from invnext_jax.sweeps.arms import Arm, Step

COLUMNS = evaluations.COLUMNS
_TITLES = {
    "1a": "Table 1a: components of Stage 1",
    "1b": "Table 1b: predictor",
    "1c": "Table 1c: decoder",
    "2": "Table 2: image teacher",
    "3": "Table 3: Stage 2",
    "4": "Table 4: masks and frames",
}
_FULL = "1a_both"  # the Stage 1 model with all components, from which Stage 2 starts
_BASELINES = {
    "1a": _FULL,
    "1b": "1b_modernbert5",
    "1c": "1c_diffusion_6x1536",
    "2": "2_siglip",
    "3": "3_stage1",
    "4": "4_stage1_semantic",
}
_SCANNET = ("2", "4")  # tables with a column for depth
# Values of the paper: K400, SSv2 and, in Tables 2 and 4, delta1 on ScanNet.
PUBLISHED = {
    "1a_pixels_only": (47.2, 28.1),
    "1a_align_only": (70.7, 32.1),
    "1a_linear": (69.8, 31.8),
    "1a_diffusion": (74.2, 35.4),
    "1a_text_init": (69.4, 31.3),
    "1a_both": (75.8, 36.9),
    "1b_modernbert2": (73.2, 34.8),
    "1b_modernbert5": (75.8, 36.9),
    "1b_modernbert5_no_init": (74.2, 35.4),
    "1b_modernbert8": (75.6, 37.0),
    "1b_vit5": (74.1, 34.9),
    "1b_vit12": (73.2, 34.4),
    "1c_linear": (69.4, 31.3),
    "1c_mlp3": (69.7, 31.2),
    "1c_diffusion_3x1024": (73.4, 33.2),
    "1c_diffusion_6x1536": (75.8, 36.9),
    "1c_diffusion_9x2048": (75.5, 36.4),
    "2_dinov2_align_only": (68.4, 29.5, 43.3),
    "2_dinov2": (69.3, 31.5, 58.3),
    "2_clip_align_only": (69.1, 31.2, 40.6),
    "2_clip": (73.2, 34.6, 57.8),
    "2_siglip_align_only": (70.7, 32.1, 42.1),
    "2_siglip": (75.8, 36.9, 59.4),
    "3_stage1": (75.8, 36.9),
    "3_stage2": (76.9, 56.9),
    "3_vjepa_predictor": (74.8, 53.8),
    "3_momentum": (74.1, 54.3),
    "3_siglip_target": (75.4, 45.7),
    "3_align_visible": (75.7, 51.1),
    "3_pixels": (76.8, 57.0),
    "4_stage1_semantic": (75.8, 36.9, 59.4),
    "4_stage1_multi_block": (74.4, 36.3, 58.1),
    "4_stage2_semantic": (75.2, 52.3, 61.1),
    "4_stage2_multi_block": (76.9, 56.9, 66.1),
    "4_stage1_8f": (75.8, 36.9, 59.4),
    "4_stage1_16f": (76.4, 38.4, 59.8),
    "4_stage1_32f": (76.6, 38.6, 59.3),
    "4_stage2_8f": (77.0, 57.5, 67.1),
    "4_stage2_16f": (77.4, 58.4, 68.7),
    "4_stage2_32f": (78.1, 59.4, 70.1),
}
_PUBLISHED_COLUMNS = ("K400", "SSv2", "ScanNet delta1")
# Rows that only differ from another row by weights that the tiny variant does not have.
_NOT_TINY = (
    *("1a_text_init", "1a_both", "1b_modernbert5_no_init"),
    *("2_dinov2_align_only", "2_dinov2", "2_clip_align_only", "2_clip"),
)
_TINY_FULL = "1a_diffusion"  # the row with all components except the text model


def sweep_table1a(variant: str = "base") -> Iterator[Arm]:
    """Table 1a: the components of Stage 1."""
    yield from _table("1a", variant)


def sweep_table1b(variant: str = "base") -> Iterator[Arm]:
    """Table 1b: predictors."""
    yield from _table("1b", variant)


def sweep_table1c(variant: str = "base") -> Iterator[Arm]:
    """Table 1c: pixel decoders."""
    yield from _table("1c", variant)


def sweep_table2(variant: str = "base") -> Iterator[Arm]:
    """Table 2: image teachers."""
    yield from _table("2", variant)


def sweep_table3(variant: str = "base") -> Iterator[Arm]:
    """Table 3: variants of Stage 2."""
    yield from _table("3", variant)


def sweep_table4(variant: str = "base") -> Iterator[Arm]:
    """Table 4: masks and numbers of frames."""
    yield from _table("4", variant)


def sweep_all(variant: str = "base") -> Iterator[Arm]:
    """All tables. Rows that several tables share are trained once."""
    for table in _TITLES:
        yield from _table(table, variant)


def _table(table: str, variant: str) -> Iterator[Arm]:
    if variant not in ("base", "tiny"):
        raise ValueError(f"unknown variant {variant!r}: choose base or tiny")
    is_tiny = variant == "tiny"
    baseline = _BASELINES[table]
    if is_tiny and baseline == _FULL:
        baseline = _TINY_FULL
    for row, values in PUBLISHED.items():
        name = row.removeprefix(f"{table}_")
        if name == row or (is_tiny and row in _NOT_TINY):
            continue
        yield Arm(
            name=name,
            steps=(*_trainings(row, is_tiny), *_evaluations(table, row, is_tiny)),
            is_baseline=row == baseline,
            reference={} if is_tiny else dict(zip(_PUBLISHED_COLUMNS, values, strict=False)),
            group=_TITLES[table] + (", tiny variant" if is_tiny else ""),
        )


def _trainings(row: str, is_tiny: bool) -> tuple[Step, ...]:
    row = _FULL if row == "3_stage1" else row
    if ablations.ROWS[row][0] == "stage1":
        return (_training("stage1", row, is_tiny),)
    return (_training("stage1", _FULL, is_tiny), _training("stage2", row, is_tiny))


def _training(stage: str, row: str, is_tiny: bool) -> Step:
    if is_tiny:
        has_text = stage == "stage1" and "predictor.weights" not in ablations.ROWS[row][1]
        overrides = {"predictor.weights": ""} if has_text else {}
        return Step(stage, f"configs/ablations.py:{row},tiny", overrides)
    return Step(stage, f"configs/ablations.py:{row}", {"data.manifest": "data/kmash.csv"})


def _evaluations(table: str, row: str, is_tiny: bool) -> tuple[Step, ...]:
    if is_tiny:
        return (evaluations.WORLD,)
    probes = (evaluations.K400, evaluations.SSV2)
    probes += (evaluations.SCANNET,) if table in _SCANNET else ()
    frames = ablations.ROWS.get(row, ("", {}))[1].get("data.frames", 8)
    return tuple(probe.with_overrides({"data.frames": frames}) for probe in probes)
