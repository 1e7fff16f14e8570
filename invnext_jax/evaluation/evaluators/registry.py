"""Registry of evaluators by name. Code outside this package can also call `register`."""

import contextlib
import inspect
import re
from collections.abc import Sequence
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import (
    anticipation,
    attentive_probe,
    baselines,
    depth,
    label_propagation,
    linear_probe,
    nearest_neighbors,
    supervised,
    temporal_context,
    text_alignment,
    tracking,
)
from invnext_jax.evaluation.evaluators.evaluator import Evaluator

EVALUATORS: dict[str, Evaluator] = {}


def register(evaluator: Evaluator) -> Evaluator:
    """Registers an evaluator under its name and returns it.

    Raises:
      ValueError: the name is not an identifier, or is already registered.
    """
    if not re.fullmatch(r"\w+", evaluator.name):
        raise ValueError(f"evaluator name {evaluator.name!r} must be an identifier")
    if EVALUATORS.setdefault(evaluator.name, evaluator) is not evaluator:
        raise ValueError(f"an evaluator {evaluator.name!r} is already registered: rename this one")
    return evaluator


def find_evaluators(names: Sequence[str]) -> list[Evaluator]:
    """Returns the evaluators with the given names, in the same order.

    Raises:
      UserError: `names` is empty, or a name is not registered.
    """
    if not names:
        raise UserError("config.evaluators is empty: add at least one evaluator")
    if unknown := [name for name in names if name not in EVALUATORS]:
        raise UserError(
            f"config.evaluators has {unknown[0]!r}, which is not one of {', '.join(EVALUATORS)}; "
            "several are written as a tuple, such as \"('linear_probe', 'knn')\""
        )
    return [EVALUATORS[name] for name in dict.fromkeys(names)]


def check_running(evaluators: Sequence[Evaluator], controls: bool) -> None:
    """Checks that at least one of the evaluators of an evaluation runs.

    Raises:
      UserError: all evaluators are baselines, and `config.controls` is False.
    """
    if not controls and all(evaluator.is_baseline for evaluator in evaluators):
        names = ", ".join(evaluator.name for evaluator in evaluators)
        raise UserError(
            f"config.evaluators has only baselines ({names}), which do not run because "
            "config.controls is False: set it to True"
        )


def needs_manifests(evaluator: Evaluator, config: Any) -> bool:
    """Returns whether an evaluator reads the videos of `train_manifest` and `val_manifest`.

    The default is True. An evaluator can define a method `needs_manifests(config)` that returns
    False.
    """
    method = getattr(evaluator, "needs_manifests", None)
    return True if method is None else method(config)


def needs_labels(evaluator: Evaluator) -> bool:
    """Returns whether an evaluator needs labels in both manifests.

    The default is True. An evaluator can set an attribute `needs_labels` to False.
    """
    return getattr(evaluator, "needs_labels", True)


def uses_predictor(evaluator: Evaluator) -> bool:
    """Returns whether the rows depend on the checkpoint's predictor or on its config.

    The default is False. An evaluator that reads `inputs.encoder.loaded.predictor` or the config of
    the checkpoint must set an attribute `uses_predictor` to True. Otherwise, its rows are not
    measured again if another predictor belongs to the same encoder.
    """
    return getattr(evaluator, "uses_predictor", False)


def dense_features(evaluators: Sequence[Evaluator], config: Any) -> set[tuple[str, int]]:
    """Returns the splits and numbers of views for which one of the evaluators reads all tokens.

    The default is none. An evaluator that calls `inputs.features` with `dense=True` can define a
    method `dense_features(config)` that returns them. Its tokens are then stored together with the
    pooled features of other evaluators, so that the encoder runs only once.
    """
    found: set[tuple[str, int]] = set()
    for evaluator in evaluators:
        method = getattr(evaluator, "dense_features", None)
        found |= set() if method is None else set(method(config))
    return found


def describe_source(evaluator: Evaluator, config: Any) -> str:
    """Returns an evaluator's source code, which is part of the cache key.

    If the evaluator has a method `hash_files`, its result for the config is added. It describes
    files, other than the videos and their manifests, that the rows depend on.
    """
    method = getattr(evaluator, "hash_files", None)
    digest = "" if method is None else method(config)
    with contextlib.suppress(OSError, TypeError):  # classes of interactive sessions have no source
        return inspect.getsource(type(evaluator)) + digest
    return digest


register(linear_probe.LinearProbe())
register(nearest_neighbors.NearestNeighbors())
register(nearest_neighbors.FewShot())
register(attentive_probe.AttentiveProbe())
register(depth.Depth())
register(label_propagation.LabelPropagation())
register(anticipation.Anticipation())
register(text_alignment.TextAlignment())
register(tracking.Tracking())
register(temporal_context.TemporalContext())
register(baselines.PixelBaselines())
register(baselines.BoxBaselines())
register(supervised.SupervisedBaseline())
