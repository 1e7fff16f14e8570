"""The study of docs/study.md: claims of the paper's Tables 1a, 3 and 4 in a synthetic world.

    python launch/sweep.py --config=configs/sweeps/study.py --workdir=sweeps/study --seeds=0,1,2
    python launch/sweep.py --config=configs/sweeps/study.py:stages --workdir=sweeps/stages \
        --seeds=0,1,2

Without a name, all arms are trained: `stages` (Stage 1 and Stage 2), `components` (of Stage 1),
`extrapolation` (Stage 2 with another mask), `context` (Stage 2 with a predictor that gets tokens of
one frame), `targets` (of Stage 2), `masks` and `teachers` (of Stage 1). Arms that need the same
Stage 1 model share it.

The variants "test" (the default) and "val" evaluate on this split of the world. Explore with "val",
so that the reported values are those of videos that no choice depends on. "toy" trains for a few
steps, to check that everything runs.
"""

from collections.abc import Iterator

from invnext_jax.sweeps.arms import Arm, Column, Overrides, Step

# Objects of about one patch, which move by about one patch per frame.
WORLD = "size=48&object_size=0.6&speed=1.2"
STEPS = {"stage1": 1500, "stage2": 4000}  # of 32 clips
VARIANTS = ("test", "val", "toy")

# Linear probes have standard errors of about 1 point with 2000 held-out videos.
COLUMNS = {
    "shape": Column("probes", metric="top1", task="shape", evaluator="linear_probe", input="mean"),
    "motion, mean": Column(
        "probes", metric="top1", task="motion", evaluator="linear_probe", input="mean"
    ),
    "motion, frames": Column(
        "probes", metric="top1", task="motion", evaluator="linear_probe", input="frames"
    ),
    "motion, attentive": Column(
        "probes", metric="top1", task="motion", evaluator="attentive_probe", input="mean query"
    ),
    "conditioning gap": Column("stage1", metric="conditioning_gap", optional=True),
}

_TEACHER = {"teacher.size": 48}  # for steps that need the image teacher
_PREDICTOR = {  # for steps that need the predictor
    "predictor.depth": 2,  # the encoder has 4 layers; 5 and 12 in the paper
    "mask.predicted": 0.3,  # cheaper steps
}
_NO_ALIGNMENT = {"loss.align_tokens": 0.0, "loss.align_pooled": 0.0}
COMPONENTS: dict[str, Overrides] = {  # of Stage 1, as in Table 1a
    "alignment and diffusion decoder": _PREDICTOR,
    "alignment and linear decoder": {**_PREDICTOR, "decoder.kind": "linear"},
    "alignment only": {"loss.pixels": 0.0},
    "linear decoder only": {**_PREDICTOR, **_NO_ALIGNMENT, "decoder.kind": "linear"},
    "diffusion decoder only": {**_PREDICTOR, **_NO_ALIGNMENT},
}
# In the first half of the clips, as many patches are visible as otherwise in all frames: 4 x 26 and
# 4 x 12 instead of 8 x 13 and 8 x 6.
_FIRST_HALF = {"mask.max_temporal_keep": 0.5, "mask.visible": (0.74, 0.36)}
# Images of half the side show the object as half a patch of the teacher.
_WEAK_TEACHER = {"teacher.size": 24, "teacher.resample": True}
TEACHERS: dict[str, Overrides] = {  # of Stage 1, as in Table 2
    "images of 48 px": _PREDICTOR,
    "images of 24 px": {**_PREDICTOR, **_WEAK_TEACHER},
    "images of 24 px, alignment only": {**_WEAK_TEACHER, "loss.pixels": 0.0},
}
TARGETS: dict[str, Overrides] = {  # of Stage 2, as in Table 3
    "momentum target": {"target.kind": "momentum", "target.momentum": 0.998},
    "image target": {"target.kind": "image", **_TEACHER},
    "visible alignment": {"loss.align_visible": 1.0},
    "pixels": {"loss.pixels": 1.0},
    "new predictor": {"init_parts": ("encoder", "pool")},
}


def sweep_stages(variant: str = "test") -> Iterator[Arm]:
    """Stage 1 and Stage 2."""
    group = "Stages"
    steps = (_stage1(variant), _probes(variant, random=True))
    yield Arm("Stage 1", steps, is_baseline=True, group=group)
    steps = (_stage1(variant), _stage2(variant), _probes(variant))
    yield Arm("Stage 1 and Stage 2", steps, group=group)


def sweep_components(variant: str = "test") -> Iterator[Arm]:
    """Losses and decoders of Stage 1, without Stage 2."""
    for name, overrides in COMPONENTS.items():
        is_baseline = name == "alignment and diffusion decoder"
        stage1 = _training("stage1", variant, {**_TEACHER, **overrides})
        steps = (stage1, _probes(variant, random=is_baseline))
        yield Arm(name, steps, is_baseline=is_baseline, group="Components of Stage 1")


def sweep_extrapolation(variant: str = "test") -> Iterator[Arm]:
    """Stage 2 with masks that hide the second half of the clips, which is not in the paper."""
    arms = {"visible in all frames": {}, "visible in first half": _FIRST_HALF}
    yield from _stage2_arms(variant, arms, group="Extrapolation in Stage 2")


def sweep_context(variant: str = "test") -> Iterator[Arm]:
    """Stage 2 with a predictor that cannot combine frames, which is not in the paper."""
    arms = {"predictor gets all frames": {}, "predictor gets one frame": {"mask.context_frames": 1}}
    yield from _stage2_arms(variant, arms, group="Context in Stage 2")


def sweep_targets(variant: str = "test") -> Iterator[Arm]:
    """Targets and losses of Stage 2, and a predictor with random initial parameters."""
    yield from _stage2_arms(variant, {"frozen target": {}, **TARGETS}, group="Targets of Stage 2")


def sweep_masks(variant: str = "test") -> Iterator[Arm]:
    """Semantic and multi-block masks in both stages."""
    group = "Masks"
    for kind in ("semantic", "multi_block"):
        stage1 = _stage1(variant, {"mask.kind": kind})
        probes = _probes(variant, random=kind == "semantic")
        yield Arm(f"Stage 1, {kind}", (stage1, probes), group=group)
    for kind in ("semantic", "multi_block"):
        teacher = _TEACHER if kind == "semantic" else {}
        stage2 = _stage2(variant, {"mask.kind": kind, **teacher})
        steps = (_stage1(variant), stage2, _probes(variant))
        yield Arm(f"Stage 2, {kind}", steps, is_baseline=kind == "multi_block", group=group)


def sweep_teachers(variant: str = "test") -> Iterator[Arm]:
    """Stage 1 with a weaker image teacher, with and without diffusion decoder, as in Table 2."""
    for name, overrides in TEACHERS.items():
        stage1 = _training("stage1", variant, {**_TEACHER, **overrides})
        is_baseline = overrides is _PREDICTOR
        steps = (stage1, _probes(variant, random=is_baseline))
        yield Arm(name, steps, is_baseline=is_baseline, group="Teachers of Stage 1")


def sweep(variant: str = "test") -> Iterator[Arm]:
    """All arms, the most important ones first."""
    yield from sweep_stages(variant)
    yield from sweep_components(variant)
    yield from sweep_extrapolation(variant)
    yield from sweep_context(variant)
    yield from sweep_targets(variant)
    yield from sweep_masks(variant)
    yield from sweep_teachers(variant)


def _stage2_arms(variant: str, arms: dict[str, Overrides], group: str) -> Iterator[Arm]:
    """Yields arms with the same Stage 1; the one without overrides of Stage 2 is the baseline."""
    for name, overrides in arms.items():
        steps = (_stage1(variant), _stage2(variant, overrides), _probes(variant))
        yield Arm(name, steps, is_baseline=not overrides, group=group)


def _stage1(variant: str, overrides: Overrides | None = None) -> Step:
    return _training("stage1", variant, {**_TEACHER, **_PREDICTOR, **(overrides or {})})


def _stage2(variant: str, overrides: Overrides | None = None) -> Step:
    return _training("stage2", variant, {**_PREDICTOR, **(overrides or {})})


def _training(stage: str, variant: str, overrides: Overrides) -> Step:
    toy = variant == "toy"
    shared = {
        "data.manifest": _world("train", 64 if toy else 50_000),
        **{"data.size": 48, "encoder.size": 48},
        "total_steps": 4 if toy else STEPS[stage],
        "log.diagnostics_every_steps": 2 if toy else 500,
    }
    return Step(stage, f"configs/{stage}.py:tiny", {**shared, **overrides})


def _probes(variant: str, *, random: bool = False) -> Step:
    """Returns the evaluation. With `random`, it also evaluates an encoder of random parameters."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    toy = variant == "toy"
    overrides = {
        "train_manifest": _world("train", 64 if toy else 6000),
        "val_manifest": _world("val" if variant == "val" else "test", 32 if toy else 2000),
        "evaluators": ("linear_probe", "attentive_probe"),
        "poolings": ("mean", "frames", "pool"),
        "tasks": ("shape", "motion"),
        "controls": random,
        # The paper does not state a weight decay. Fewer epochs than for its data sets are enough.
        "attentive_probe.weight_decays": (0.0,),
        "attentive_probe.epochs": 10.0,
    }
    if toy:
        overrides["attentive_probe.epochs"] = 3.0
    return Step("probes", "configs/eval/tasks/attentive_probe.py:tiny", overrides)


def _world(split: str, videos: int) -> str:
    return f"world:simple/{split}?videos={videos}&{WORLD}"
