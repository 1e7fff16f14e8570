"""Linear probe: multinomial logistic regression on frozen features, solved to convergence.

Because the fit converges, the result has no optimizer noise. Probes of features that are too large
for this solver are trained by `streaming_probe`. The penalty is selected on a held-out part of the
training videos, never on the videos whose accuracy is reported.

Shape key: b videos, v views of a video, d features, k classes.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special
from threadpoolctl import threadpool_limits

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import streaming_probe
from invnext_jax.evaluation.evaluators.classification import (
    ClassifierResult,
    fit_tasks,
    make_rows,
    score_predictions,
)
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.features import POOLINGS
from invnext_jax.evaluation.inputs import EvalInputs

SMALL = 2**24  # number of elements; products of smaller matrices use one thread


class LinearProbe:
    """Linear probes of the pooled features, with one row for each pooling and task."""

    name = "linear_probe"
    is_baseline = False
    options = ("poolings", "features.views", "inverse_penalties", "held_out", "streaming")

    def check_config(self, config: Any) -> None:
        """Checks the poolings and the options of the fit."""
        unknown = set(config.poolings) - set(POOLINGS)
        if unknown:
            raise UserError(f"unknown poolings {sorted(unknown)}: choose from {POOLINGS}")
        check_fit_config(config)
        streaming_probe.check_config(config)

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Fits the probes on normalized features."""
        train = inputs.features("train")
        val = inputs.features("val", views=config.features.views)
        rows = []
        for pooling in filter(train.has_pooling, config.poolings):
            if streaming_probe.is_needed(train, pooling, config):
                results = streaming_probe.fit_streaming_tasks(
                    train, val, pooling, inputs.dataset.tasks, config, inputs.state_file
                )
                details = {"solver": "streaming"}
            else:
                data = train.pooled(pooling), val.pooled_views(pooling)
                # The scaling is computed from all training videos, because it needs no labels.
                data = standardize(*map(normalize_rows, data))
                results = fit_linear_tasks(data, (train.labels, val.labels), inputs, config)
                details = {}
            rows += make_rows(self.name, inputs.name, pooling, results, val.index_b, **details)
        return rows


def check_fit_config(config: Any) -> None:
    """Checks `inverse_penalties` and `held_out`.

    Raises:
      UserError: the list is empty, a value is not positive, or `held_out` is not a fraction.
    """
    if not 0 < config.held_out < 1:
        raise UserError(
            f"config.held_out={config.held_out} must be a fraction of the training videos, between "
            "0 and 1"
        )
    if not config.inverse_penalties or min(config.inverse_penalties) <= 0:
        raise UserError(
            f"config.inverse_penalties={config.inverse_penalties} must be positive numbers"
        )


def fit_linear_tasks(
    data: Sequence[np.ndarray],
    labels: Sequence[Mapping[str, np.ndarray]],
    inputs: EvalInputs,
    config: Any,
) -> dict[str, ClassifierResult]:
    """Fits a linear probe for each task with the options in `config`; see `fit_tasks`."""
    fit = functools.partial(
        fit_linear,
        inverse_penalties=config.inverse_penalties,
        held_out=config.held_out,
        seed=config.seed,
    )
    return fit_tasks(data, labels, inputs.dataset.tasks, fit)


def normalize_rows(x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """Applies LayerNorm without scale and bias, which the probe already has, to rows [... d]."""
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)


def standardize(train_bd: np.ndarray, val_bvd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardizes features with the training videos' statistics and rotates to principal axes.

    The rotation makes the problem well conditioned. It does not change the solution, because the
    penalty is isotropic. If there are more features than videos, directions in which the training
    videos do not vary are dropped.

    Args:
      train_bd: features of the training videos.
      val_bvd: features of the held-out videos, of one view [b d] or of several [b v d].

    Returns:
      float64 [b, axes] for the training videos, and [b, axes] or [b, v, axes] for the others.
    """
    train_bd, val_bvd = (np.asarray(x, np.float64) for x in (train_bd, val_bvd))
    mean_d, std_d = train_bd.mean(axis=0), train_bd.std(axis=0)
    std_d = np.where(std_d > 1e-12 * np.abs(mean_d) + 1e-30, std_d, 1.0)
    train_bd, val_bvd = ((x - mean_d) / std_d for x in (train_bd, val_bvd))
    if train_bd.shape[0] >= train_bd.shape[1]:
        _, axes_dk = np.linalg.eigh(train_bd.T @ train_bd)
        return train_bd @ axes_dk, val_bvd @ axes_dk
    squares_k, left_bk = np.linalg.eigh(train_bd @ train_bd.T)
    kept = squares_k > 1e-10 * squares_k[-1]
    lengths_k = np.sqrt(squares_k[kept])
    axes_dk = train_bd.T @ (left_bk[:, kept] / lengths_k[None])
    return left_bk[:, kept] * lengths_k[None], val_bvd @ axes_dk


@dataclasses.dataclass(frozen=True)
class Logistic:
    """A fitted logistic regression.

    Attributes:
      classes_k: ids of the classes, int.
      weights_dk: float64 weights.
      offset_k: float64 biases.
      converged: whether the solver reached its tolerance.
    """

    classes_k: np.ndarray
    weights_dk: np.ndarray
    offset_k: np.ndarray
    converged: bool

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns the most likely class of each video, [b].

        Args:
          x: features of one view [b d], or of several [b v d] whose probabilities are averaged.
        """
        logits = x @ self.weights_dk + self.offset_k
        if x.ndim == 3:
            logits = special.softmax(logits, axis=-1).mean(axis=1)
        return self.classes_k[np.argmax(logits, axis=-1)]


def fit_logistic(
    x_bd: np.ndarray, labels_b: np.ndarray, inverse_penalty: float, max_iterations: int = 1000
) -> Logistic:
    """Minimizes C * sum(cross-entropy) + |weights|^2 / 2 by L-BFGS; offsets have no penalty.

    Args:
      x_bd: float64 features, preferably from `standardize`; the solver scales each axis separately.
      labels_b: int classes, of which at least two differ.
      inverse_penalty: the factor C.
      max_iterations: maximum number of solver iterations.
    """
    classes_k, target_b = np.unique(labels_b, return_inverse=True)
    b, d, k = len(x_bd), x_bd.shape[1], len(classes_k)
    onehot_bk = np.eye(k)[target_b]
    decay = 1.0 / (inverse_penalty * b)
    # Each axis is preconditioned with an upper bound of its curvature.
    scale_d = 1.0 / np.sqrt(np.square(x_bd).mean(axis=0) / k + decay)

    def objective(flat):
        scaled_dk, offset_k = flat[:-k].reshape(d, k), flat[-k:]
        weights_dk = scaled_dk * scale_d[:, None]
        logits_bk = x_bd @ weights_dk + offset_k[None]
        log_sum_b = special.logsumexp(logits_bk, axis=1)
        loss = np.mean(log_sum_b) - np.sum(logits_bk * onehot_bk) / b
        loss += 0.5 * decay * np.sum(weights_dk**2)
        error_bk = (np.exp(logits_bk - log_sum_b[:, None]) - onehot_bk) / b
        grad_dk = (x_bd.T @ error_bk + decay * weights_dk) * scale_d[:, None]
        return loss, np.concatenate([grad_dk.ravel(), error_bk.sum(axis=0)])

    options = {"maxiter": max_iterations, "gtol": 1e-6, "ftol": 1e-12}
    # For small products, starting threads takes 20 times as long as the product itself.
    with threadpool_limits(1 if x_bd.size < SMALL else None):
        solution = optimize.minimize(
            objective, np.zeros((d + 1) * k), jac=True, method="L-BFGS-B", options=options
        )
    weights_dk = solution.x[:-k].reshape(d, k) * scale_d[:, None]
    return Logistic(classes_k, weights_dk, solution.x[-k:], bool(solution.success))


def fit_linear(
    train_bd: np.ndarray,
    train_labels_b: np.ndarray,
    val_bd: np.ndarray,
    val_labels_b: np.ndarray,
    *,
    inverse_penalties: Sequence[float],
    held_out: float = 0.2,
    seed: int = 0,
) -> ClassifierResult:
    """Fits a linear probe and measures its accuracy on the held-out videos.

    Args:
      train_bd: features of the training videos, from `standardize`.
      train_labels_b: int labels of the training videos.
      val_bd: features of the held-out videos, from `standardize`: [b d] or [b v d].
      val_labels_b: int labels. Videos of a class without training videos count as wrong.
      inverse_penalties: candidate values of C. Ties are resolved in favor of the smaller value.
      held_out: fraction of the training videos that is used to select C. The final fit uses all
        training videos.
      seed: seed for splitting the training videos.
    """
    start = time.perf_counter()
    chosen = _choose_penalty(train_bd, train_labels_b, sorted(inverse_penalties), held_out, seed)
    model = fit_logistic(train_bd, train_labels_b, chosen)
    return score_predictions(
        (model.predict(train_bd), model.predict(val_bd)),
        (train_labels_b, val_labels_b),
        start=start,
        inverse_penalty=chosen,
        converged=model.converged,
    )


def _choose_penalty(x_bd, labels_b, inverse_penalties, held_out, seed) -> float:
    """Returns the C with the best accuracy on a held-out fraction after fitting on the rest."""
    order_b = np.random.default_rng(seed).permutation(len(labels_b))
    choose_b, fit_b = np.split(order_b, [max(1, round(held_out * len(order_b)))])
    if len(inverse_penalties) == 1 or len(np.unique(labels_b[fit_b])) < 2:
        return inverse_penalties[0]
    shares = []
    for inverse_penalty in inverse_penalties:
        model = fit_logistic(x_bd[fit_b], labels_b[fit_b], inverse_penalty)
        shares.append(np.mean(model.predict(x_bd[choose_b]) == labels_b[choose_b]))
    return inverse_penalties[int(np.argmax(shares))]
