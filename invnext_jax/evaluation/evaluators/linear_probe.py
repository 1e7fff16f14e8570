"""Linear probes on frozen features, solved exactly, so that the figure has no optimiser noise.

Multinomial logistic regression; its penalty is chosen by a held-out part of the training videos,
never by the videos that are reported.

Shape key: b videos, d features, k classes.
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_limits

from invnext_jax.errors import UserError

SMALL = 2**24  # values; matrices below it are multiplied by one thread


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Top-1 shares in [0, 1] of one fitted classifier.

    Attributes:
      top1: share right among the `videos` held-out videos.
      standard_error: binomial, of `top1`.
      train_top1: share right among the videos it was fitted on.
      videos: number of held-out videos.
      classes: number of classes among the training labels.
      inverse_penalty: the C that was chosen; None for a classifier without one.
      converged: whether the solver reached its tolerance.
      seconds: time for all fits.
    """

    top1: float
    standard_error: float
    train_top1: float
    videos: int
    classes: int
    inverse_penalty: float | None
    converged: bool
    seconds: float


def binomial_standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent trials: sqrt(p (1 - p) / n)."""
    return float(np.sqrt(share * (1.0 - share) / count))


def summarize(
    guesses: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
    *,
    start: float,
    inverse_penalty: float | None = None,
    converged: bool = True,
) -> ProbeResult:
    """Turns guesses and labels [b] of (training, held-out) videos into a result.

    Args:
      guesses: int classes.
      labels: int classes.
      start: `time.perf_counter()` before the work.
      inverse_penalty: see `ProbeResult`.
      converged: see `ProbeResult`.
    """
    train_top1, top1 = (float(np.mean(g == y)) for g, y in zip(guesses, labels, strict=True))
    return ProbeResult(
        top1=top1,
        standard_error=binomial_standard_error(top1, len(labels[1])),
        train_top1=train_top1,
        videos=len(labels[1]),
        classes=len(np.unique(labels[0])),
        inverse_penalty=inverse_penalty,
        converged=converged,
        seconds=time.perf_counter() - start,
    )


def find_labeled(labels_b: np.ndarray, task: str, split: str) -> np.ndarray:
    """Which videos have a label: bool [b]; a negative number stands for none.

    Raises:
      UserError: none has; the text names the `task` and the `split`.
    """
    labeled_b = labels_b >= 0
    if not labeled_b.any():
        raise UserError(
            f"label_{task} has no labelled video in the {split} manifest: "
            "leave the task out of config.tasks or give videos with labels of it"
        )
    return labeled_b


def check_classes(labels_b: np.ndarray, task: str) -> None:
    """Raises `UserError` if there are fewer than two classes to tell apart."""
    if len(np.unique(labels_b)) < 2:
        raise UserError(
            f"label_{task} has only one class in the training manifest: "
            "leave the task out of config.tasks or give videos of several classes"
        )


def normalize_rows(x_bd: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """LayerNorm of every video's features without its affine part (the linear map has one)."""
    x_bd = np.asarray(x_bd, dtype=np.float64)
    x_bd = x_bd - x_bd.mean(axis=1, keepdims=True)
    return x_bd / np.sqrt(np.square(x_bd).mean(axis=1, keepdims=True) + eps)


def standardize(train_bd: np.ndarray, val_bd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zero mean and unit deviation by the training videos, then a turn to their principal axes.

    The turn changes no solution (the penalty is a sphere), but it makes the solver's problem well
    scaled, and where there are more features than videos it leaves out what no video spans.

    Returns:
      float64 [b, axes] of both.
    """
    train_bd, val_bd = (np.asarray(x, np.float64) for x in (train_bd, val_bd))
    mean_d, std_d = train_bd.mean(axis=0), train_bd.std(axis=0)
    std_d = np.where(std_d > 1e-12 * np.abs(mean_d) + 1e-30, std_d, 1.0)
    train_bd, val_bd = ((x - mean_d[None]) / std_d[None] for x in (train_bd, val_bd))
    if train_bd.shape[0] >= train_bd.shape[1]:
        _, axes_dk = np.linalg.eigh(train_bd.T @ train_bd)
        return train_bd @ axes_dk, val_bd @ axes_dk
    squares_k, left_bk = np.linalg.eigh(train_bd @ train_bd.T)
    kept = squares_k > 1e-10 * squares_k[-1]
    lengths_k = np.sqrt(squares_k[kept])
    axes_dk = train_bd.T @ (left_bk[:, kept] / lengths_k[None])
    return left_bk[:, kept] * lengths_k[None], val_bd @ axes_dk


@dataclasses.dataclass(frozen=True)
class Logistic:
    """A fitted classifier: classes [k], weights [d k], offsets [k]."""

    classes_k: np.ndarray
    weights_dk: np.ndarray
    offset_k: np.ndarray
    converged: bool

    def predict(self, x_bd: np.ndarray) -> np.ndarray:
        """The likeliest class of each video: [b]."""
        return self.classes_k[np.argmax(x_bd @ self.weights_dk + self.offset_k[None], axis=1)]


def fit_logistic(
    x_bd: np.ndarray, labels_b: np.ndarray, inverse_penalty: float, max_iterations: int = 500
) -> Logistic:
    """Minimises C * sum of cross-entropies + |weights|^2 / 2 by L-BFGS; offsets are free.

    Args:
      x_bd: float64, best on principal axes (`standardize`), as each axis is scaled on its own.
      labels_b: int classes, at least two different ones.
      inverse_penalty: C.
      max_iterations: of the solver.
    """
    classes_k, target_b = np.unique(labels_b, return_inverse=True)
    b, d, k = len(x_bd), x_bd.shape[1], len(classes_k)
    onehot_bk = np.eye(k)[target_b]
    decay = 1.0 / (inverse_penalty * b)
    # An upper bound of the curvature along each axis makes the steps even.
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

    options = {"maxiter": max_iterations, "gtol": 1e-5, "ftol": 1e-10}
    # Small products: waking threads for each takes twenty times as long as computing it.
    with threadpool_limits(1 if x_bd.size < SMALL else None):
        found = optimize.minimize(
            objective, np.zeros((d + 1) * k), jac=True, method="L-BFGS-B", options=options
        )
    weights_dk = found.x[:-k].reshape(d, k) * scale_d[:, None]
    return Logistic(classes_k, weights_dk, found.x[-k:], bool(found.success))


def fit_linear(
    train_bd: np.ndarray,
    train_labels_b: np.ndarray,
    val_bd: np.ndarray,
    val_labels_b: np.ndarray,
    *,
    inverse_penalties: Sequence[float],
    held_out: float = 0.2,
    seed: int = 0,
) -> ProbeResult:
    """Fits a linear probe and measures it on the held-out videos.

    Args:
      train_bd: features of the training videos, from `standardize`.
      train_labels_b: int labels of the training videos.
      val_bd: features of the held-out videos, from `standardize`.
      val_labels_b: int labels; one that training lacks counts as wrong.
      inverse_penalties: values of C to choose from; ties go to the smaller one.
      held_out: share of the training videos that chooses C; the last fit uses all of them.
      seed: of that split.
    """
    start = time.perf_counter()
    chosen = _choose_penalty(train_bd, train_labels_b, sorted(inverse_penalties), held_out, seed)
    model = fit_logistic(train_bd, train_labels_b, chosen)
    return summarize(
        (model.predict(train_bd), model.predict(val_bd)),
        (train_labels_b, val_labels_b),
        start=start,
        inverse_penalty=chosen,
        converged=model.converged,
    )


def _choose_penalty(x_bd, labels_b, inverse_penalties, held_out, seed) -> float:
    """The C whose fit on the rest is best on `held_out` of the training videos."""
    order_b = np.random.default_rng(seed).permutation(len(labels_b))
    choose_b, fit_b = np.split(order_b, [max(1, round(held_out * len(order_b)))])
    if len(inverse_penalties) == 1 or len(np.unique(labels_b[fit_b])) < 2:
        return inverse_penalties[0]
    shares = []
    for inverse_penalty in inverse_penalties:
        model = fit_logistic(x_bd[fit_b], labels_b[fit_b], inverse_penalty)
        shares.append(np.mean(model.predict(x_bd[choose_b]) == labels_b[choose_b]))
    return inverse_penalties[int(np.argmax(shares))]


def fit_forest(
    train_bd: np.ndarray,
    train_labels_b: np.ndarray,
    val_bd: np.ndarray,
    val_labels_b: np.ndarray,
    *,
    trees: int = 200,
    seed: int = 0,
) -> ProbeResult:
    """Fits a random forest, for inputs whose relation to the label is not linear (boxes)."""
    start = time.perf_counter()
    model = RandomForestClassifier(trees, random_state=seed, n_jobs=-1)
    model.fit(train_bd, train_labels_b)
    guesses = model.predict(train_bd), model.predict(val_bd)
    return summarize(guesses, (train_labels_b, val_labels_b), start=start)
