"""Inputs for the tests of dense evaluators, and encoders that return functions of the labels."""

import numpy as np
from oracle_encoder import make_oracle

from invnext_jax.evaluation import evaluate
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.evaluation.inputs import EvalInputs, EvaluationData


def resolve(config, encoder, world="", **changes):
    """Resolves a config for an encoder. `world` has the level and the options of a world URL."""
    if world:
        level, _, options = world.partition("?")
        config.train_manifest = f"world:{level}/train?{options}"
        config.val_manifest = f"world:{level}/val?{options}"
    else:
        config.train_manifest = config.val_manifest = ""
    config.data.workers = 0
    config.update(changes)
    return evaluate.resolve(config, encoder)


def make_inputs(config, encoder, folder, name="encoder", tasks=()):
    """Makes the inputs of an evaluator for a resolved config."""
    dataset = EvaluationData(config, tasks)
    return EvalInputs(name, dataset, lambda: encoder, FeatureCache(folder / "features"))


def read_truth(settings, config, splits=("train", "val")):
    """Reads the ground truth of all rows of the splits: arrays [m ...] by name."""
    rows = []
    for split in splits:
        truth = truth_source.open_truth(settings, split, config)
        rows += [truth.load(row) for row in range(len(truth))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_truth_oracle(settings, config, make_tokens, patch, splits=("train", "val")):
    """Makes an encoder whose tokens are computed from the ground truth.

    Args:
      settings: the section of the evaluator.
      config: the resolved config.
      make_tokens: function (arrays of all rows) -> tokens [m t n d] or [m t d].
      patch: patch size of the encoder.
      splits: splits whose clips are known.
    """
    truth = read_truth(settings, config, splits)
    return make_oracle(truth["video"], make_tokens(truth), patch=patch)
