"""The encoder in the package has the features that docs/study.md measures."""

import ml_collections

from configs.eval.tasks import linear_probe
from invnext_jax.evaluation import evaluate
from invnext_jax.weights.export import ASSETS

WORLD = "size=48&object_size=0.6&speed=1.2"


def test_included_encoder_is_small():
    assert 0 < sum(p.stat().st_size for p in ASSETS.glob("encoder_*")) < 3e6


def test_included_encoder_is_better_than_random_initialization(tmp_path):
    config = linear_probe.get_config("tiny")
    config.update(
        checkpoint=str(ASSETS / "encoder_tiny_world.safetensors"),
        train_manifest=f"world:simple/train?videos=1200&{WORLD}",
        val_manifest=f"world:simple/val?videos=400&{WORLD}",
        evaluators=("linear_probe",),
        poolings=("mean",),
        tasks=("shape", "motion"),
    )
    results = evaluate.evaluate_checkpoint(ml_collections.FrozenConfigDict(config), tmp_path)
    rows = {(row["name"], row["task"]): row for row in results["rows"]}
    assert rows["encoder", "shape"]["value"] > 0.95
    for task in ("shape", "motion"):
        first, second = (rows[name, task] for name in ("encoder", "random"))
        assert first["value"] > second["value"] + 2 * second["standard_error"]
