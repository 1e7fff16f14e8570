"""Trains a grid of heads on frozen features in one run.

All heads of a grid of learning rates and weight decays are trained on the same batches, from the
same initial parameters. They are trained together, with a `vmap` over the grid, so that the
features of a batch are read or computed only once. The state is saved at regular intervals, and
interrupted training resumes from it. In a multi-process run, each process trains all heads on its
own devices, without communication.

Shape key: g heads of the grid.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from invnext_jax import loop
from invnext_jax.errors import UserError
from invnext_jax.evaluation.feature_store.extraction import local_mesh
from invnext_jax.evaluation.feature_store.state_file import SAVE_SECONDS, SaveTimer, StateFile
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.training import mesh as mesh_lib

MAX_PENDING = 2  # maximum number of unfinished steps while the host reads the next batch
_STALLED = 20  # training stops after this number of consecutive steps without an updated head
_DIVERGED = 0.1  # a head that skipped this fraction of its steps has diverged
Batch = Mapping[str, np.ndarray]


class HeadSettings(NamedTuple):
    """Hyperparameters of one head: peak learning rate and decoupled weight decay."""

    learning_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class HeadTraining:
    """Options that all heads of a grid share.

    Attributes:
      steps: number of steps.
      warmup_steps: steps of linear warm-up, followed by a cosine decay to 0.
      seed: seed of the initial parameters and of the keys of all steps.
      clip_norm: maximum norm of the gradient of a head; 0 for no limit.
      b2: decay of the second moment in AdamW.
      save_seconds: time between two saves of the state.
    """

    steps: int
    warmup_steps: int
    seed: int
    clip_norm: float = 1.0
    b2: float = 0.999
    save_seconds: float = SAVE_SECONDS

    @classmethod
    def for_epochs(
        cls, settings: Any, steps_per_epoch: float, seed: int, **options: Any
    ) -> "HeadTraining":
        """Makes the options of a training whose length is given in epochs.

        Args:
          settings: section of the config with `epochs` and `warmup_epochs`.
          steps_per_epoch: number of steps of an epoch, which may be a fraction.
          seed: see above.
          **options: other attributes.
        """
        steps = max(1, round(settings.epochs * steps_per_epoch))
        warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
        return cls(steps, warmup_steps, seed, **options)


class TrainedHeads(NamedTuple):
    """The heads of a grid after training.

    Attributes:
      params: parameters, with a leading axis g.
      settings: hyperparameters of each head.
      diverged_g: whether the loss or the gradient of a head was often not finite. Such a head must
        not be selected.
      loss_g: float32 training loss of each head in the last step.
    """

    params: Any
    settings: tuple[HeadSettings, ...]
    diverged_g: np.ndarray
    loss_g: np.ndarray


class _State(NamedTuple):
    params: Any
    opt_state: Any
    step: jax.Array
    skipped_g: jax.Array
    loss_g: jax.Array


def make_grid(
    learning_rates: Sequence[float], weight_decays: Sequence[float]
) -> tuple[HeadSettings, ...]:
    """Returns all combinations of learning rates and weight decays.

    Raises:
      UserError: there are no values, a rate is not positive or a decay is negative.
    """
    if not learning_rates or not weight_decays or min(learning_rates) <= 0:
        raise UserError(
            f"learning_rates={tuple(learning_rates)} must be positive numbers, and "
            f"weight_decays={tuple(weight_decays)} must not be empty"
        )
    if min(weight_decays) < 0:
        raise UserError(f"weight_decays={tuple(weight_decays)} must not be negative")
    return tuple(HeadSettings(*pair) for pair in itertools.product(learning_rates, weight_decays))


def check_training(settings: Any, name: str) -> None:
    """Checks the options of the training in the section `name` of the config."""
    try:
        make_grid(settings.learning_rates, settings.weight_decays)
    except UserError as error:
        raise UserError(f"{name}.{error}") from error
    for field in ("batch_size", "epochs"):
        if settings[field] <= 0:
            raise UserError(f"{name}.{field}={settings[field]} must be positive")
    if not 0 <= settings.warmup_epochs < settings.epochs:
        warmup = f"{name}.warmup_epochs={settings.warmup_epochs}"
        raise UserError(f"{warmup} must be at least 0 and less than epochs={settings.epochs}")


def train_heads(
    init_params: Callable[[jax.Array], Any],
    loss_fn: Callable[[Any, Any, jax.Array], jax.Array],
    batches: Callable[[int], Batch],
    grid: Sequence[HeadSettings],
    training: HeadTraining,
    *,
    name: str = "heads",
    saved: StateFile | None = None,
    prepare: Callable[[Any, Any, jax.Array], Any] | None = None,
    frozen: Any = None,
) -> TrainedHeads:
    """Trains one head for each entry of a grid.

    Args:
      init_params: function key -> parameters of a head.
      loss_fn: function (parameters of a head, inputs, key) -> float32 loss. The key depends only on
        the seed and the step.
      batches: function step -> host arrays [b ...], where steps are numbered from 0. It must be
        deterministic, with constant b, which need not be a multiple of the number of devices.
      grid: hyperparameters of the heads.
      training: shared options.
      name: name of the training, shown with the progress.
      saved: file in which the state is saved; None to save nothing.
      prepare: function (frozen, batch, key) -> inputs of all heads; by default, they are the batch.
      frozen: first argument of `prepare`, for example the parameters of the encoder.

    Raises:
      UserError: no head had a finite loss and gradient for many steps.
    """
    mesh = local_mesh()
    with mesh_lib.mesh_rules(mesh):
        state = _init_state(init_params, grid, training)
        state, first_step = saved.restore(state) if saved else (state, 0)
        state = mesh_lib.replicate(state, mesh)
        frozen = mesh_lib.replicate(frozen, mesh)
        rates_g, decays_g = mesh_lib.replicate(tuple(np.array(grid, np.float32).T), mesh)
        step = _make_step(loss_fn, prepare or (lambda _frozen, batch, _key: batch), training)

        def read() -> Iterator[dict[str, jax.Array]]:
            for number in range(first_step, training.steps):
                yield _put(batches(number), mesh)

        callbacks = _Callbacks(name, saved, training, first_step)
        with callbacks.meter:
            state = loop.run_steps(
                lambda state, batch: step(state, frozen, batch, rates_g, decays_g),
                state,
                read(),
                total_steps=training.steps,
                first_step=first_step,
                callbacks=callbacks,
            )
            callbacks.show(pending=0)
        skipped_g, loss_g = jax.device_get((state.skipped_g, state.loss_g))
        if first_step < training.steps:
            callbacks.timer.save(training.steps, state)
    diverged_g = (skipped_g > _DIVERGED * training.steps) | ~np.isfinite(loss_g)
    if diverged_g.all():
        raise UserError(_nonfinite_text(name))
    return TrainedHeads(state.params, tuple(grid), diverged_g, loss_g)


def select_head(params: Any, head: int) -> Any:
    """Returns the parameters of one head of a grid."""
    return jax.tree.map(lambda x: x[head], params)


def _init_state(init_params, grid, training) -> _State:
    params = jax.jit(init_params)(jax.random.key(training.seed))
    stacked = jax.tree.map(lambda x: np.broadcast_to(x[None], (len(grid), *x.shape)), params)
    opt_state = jax.jit(jax.vmap(_make_optimizer(training).init))(stacked)
    zeros = np.zeros(len(grid), np.int32)
    return _State(stacked, opt_state, np.zeros((), np.int32), zeros, zeros.astype(np.float32))


def _make_optimizer(training: HeadTraining) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(training.clip_norm)] if training.clip_norm else []
    return optax.chain(*clip, optax.scale_by_adam(b2=training.b2))


def _make_step(loss_fn, prepare, training: HeadTraining):
    """Returns the compiled step (state, frozen, batch, rates_g, decays_g) -> (state, loss_g)."""
    tx = _make_optimizer(training)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, min(training.warmup_steps, training.steps - 1), training.steps
    )

    def update(params, opt_state, rate, decay, scale, inputs, key):
        loss, grads = jax.value_and_grad(loss_fn)(params, inputs, key)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, new_state = tx.update(grads, opt_state, params)

        def move(param, change):
            # Weight decay applies to matrices only.
            change = change + decay * param if param.ndim > 1 else change
            return param - rate * scale * change

        new = jax.tree.map(move, params, updates), new_state
        params, opt_state = jax.tree.map(
            lambda x, old: jnp.where(is_finite, x, old), new, (params, opt_state)
        )
        return params, opt_state, loss, is_finite

    def step(state, frozen, batch, rates_g, decays_g):
        key = jax.random.fold_in(jax.random.key(training.seed), state.step)
        prepare_key, loss_key = jax.random.split(key)
        inputs = jax.lax.stop_gradient(prepare(frozen, batch, prepare_key))
        scale = schedule(state.step + 1)
        all_heads = jax.vmap(update, in_axes=(0, 0, 0, 0, None, None, None))
        params, opt_state, loss_g, finite_g = all_heads(
            state.params, state.opt_state, rates_g, decays_g, scale, inputs, loss_key
        )
        skipped_g = state.skipped_g + jnp.where(finite_g, 0, 1)
        return _State(params, opt_state, state.step + 1, skipped_g, loss_g), (loss_g, finite_g)

    return jax.jit(step, donate_argnums=0)


def _put(batch: Batch, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Shards a batch over the devices, or replicates it if its size is not divisible by them."""
    rows = {len(value) for value in batch.values()}
    is_split = len(rows) == 1 and rows.pop() % mesh.size == 0
    sharding = mesh_lib.batch_sharding(mesh) if is_split else mesh_lib.replicated(mesh)
    return jax.device_put(dict(batch), sharding)


class _Callbacks(loop.Callbacks):
    """Shows the progress, saves the state, and checks that at least one head has a finite loss."""

    def __init__(self, name: str, saved, training: HeadTraining, first_step: int):
        self._name, self._first_step = name, first_step
        self._pending: list[tuple[int, tuple[jax.Array, jax.Array]]] = []
        self._stalled = 0
        self.timer = SaveTimer(saved, training.save_seconds)
        quiet = jax.process_index() > 0 or first_step == training.steps
        self.meter = ProgressMeter(training.steps, "step", initial=first_step, quiet=quiet)

    def after_step(self, number, state, metrics, diagnostics):
        """Waits for an earlier step, shows its loss, and saves the state if it is due."""
        del diagnostics
        self._pending.append((number, metrics))
        # The first step is shown at once, because it includes the compilation.
        self.show(pending=MAX_PENDING if number > self._first_step + 1 else 0)
        self.timer.save_if_due(number, state)

    def show(self, pending: int) -> None:
        """Waits for all steps except the last `pending` ones, and shows their loss."""
        while len(self._pending) > pending:
            number, metrics = self._pending.pop(0)
            loss_g, finite_g = jax.device_get(metrics)
            self._stalled = 0 if finite_g.any() else self._stalled + 1
            if self._stalled >= _STALLED:
                raise UserError(_nonfinite_text(self._name))
            least = f", loss {np.min(loss_g[finite_g]):.3g}" if finite_g.any() else ""
            self.meter.update(number, f"{self._name}{least}")


def _nonfinite_text(name: str) -> str:
    return (
        f"{name}: the loss of every head is not finite: lower the learning rates, and check that "
        "the features are finite"
    )
