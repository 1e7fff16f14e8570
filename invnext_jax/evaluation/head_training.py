"""Trains heads on a frozen encoder: all learning rates and weight decays of a grid in one run.

The features of a batch are computed once, and every head of the grid is updated with them. The
training is resumable: its state is saved in one file from time to time.

Shape key: g heads of the grid.
"""

import dataclasses
import functools
import itertools
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from invnext_jax import atomic_file, loop
from invnext_jax.errors import UserError
from invnext_jax.json_file import hash_json
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.objectives import losses
from invnext_jax.training import mesh as mesh_lib

LOG_EVERY = 10  # steps between two readings of the losses
SAVE_SECONDS = 60.0


class Head(NamedTuple):
    """What is trained.

    Attributes:
      init: function key -> parameters, without boxes. All heads of a grid start with the same ones.
      loss: function (parameters, features, key) -> float32 loss.
      features: function (frozen, batch, key) -> features, computed once for all heads. `frozen` is
        the argument of `train_heads`.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any, jax.Array], jax.Array]
    features: Callable[[Any, Any, jax.Array], Any] = lambda frozen, batch, key: batch  # noqa: ARG005


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Options of `train_heads`.

    Attributes:
      learning_rates: peak learning rates of the grid.
      weight_decays: weight decays of the grid. They apply to kernels only.
      total_steps: number of steps.
      warmup_steps: steps of linear warm-up from 0. The rate then follows a cosine to 0.
      batch_size: clips of a step, over all processes.
      seed: seed of the initialization and of all random numbers of the steps.
      heads_at_once: largest number of heads whose activations are in memory; 0 for all.
    """

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    total_steps: int
    warmup_steps: int
    batch_size: int
    seed: int = 0
    heads_at_once: int = 0

    @property
    def grid(self) -> list[dict[str, float]]:
        """The learning rate and the weight decay of each head."""
        names = "learning_rate", "weight_decay"
        pairs = itertools.product(self.learning_rates, self.weight_decays)
        return [dict(zip(names, pair, strict=True)) for pair in pairs]


class TrainedHeads(NamedTuple):
    """Result of `train_heads`.

    Attributes:
      params: parameters, with a first axis g.
      curve: loss of each head every `LOG_EVERY` steps: {"step": int, "loss": [g]}.
      skipped_g: number of updates that were skipped because they were not finite.
    """

    params: Any
    curve: list[dict[str, Any]]
    skipped_g: np.ndarray


class HeadState(flax.struct.PyTreeNode):
    """State of the training; all leaves but `step` have a first axis g."""

    step: jax.Array
    params: Any
    moments: Any
    skipped_g: jax.Array


def check_options(config: Any, name: str) -> None:
    """Checks the options of a grid in a section of a config.

    Args:
      config: has the fields learning_rates, weight_decays, epochs, warmup_epochs and batch_size.
      name: name of the section, for the message.

    Raises:
      UserError: an option has an invalid value.
    """
    for field in ("learning_rates", "weight_decays"):
        values, positive = config[field], field == "learning_rates"
        if not values or min(values) < 0 or (positive and min(values) == 0):
            rule = "positive" if positive else "not negative"
            raise UserError(f"{name}.{field}={values} must be one or more numbers, {rule}")
    for field in ("batch_size", "epochs"):
        if config[field] <= 0:
            raise UserError(f"{name}.{field}={config[field]} must be positive")
    if not 0 <= config.warmup_epochs <= config.epochs:
        warmup = f"{name}.warmup_epochs={config.warmup_epochs}"
        raise UserError(f"{warmup} must be between 0 and epochs={config.epochs}")


def make_mesh(batch_size: int) -> Mesh:
    """Returns a mesh of as many devices as divide the batch; on several hosts, of all devices."""
    count = len(jax.devices())
    while jax.process_count() == 1 and batch_size % count:
        count -= 1
    sizes = ml_collections.ConfigDict({axis: 1 for axis in mesh_lib.AXES} | {"data": count})
    return mesh_lib.make_mesh(sizes, jax.devices()[:count])


def train_heads(
    head: Head,
    open_batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    options: HeadOptions,
    *,
    mesh: Mesh,
    frozen: Any = None,
    state_file: Path | None = None,
    key: str = "",
    title: str = "heads",
) -> TrainedHeads:
    """Trains all heads of a grid with AdamW.

    Args:
      head: see `Head`.
      open_batches: function of the number of steps done -> iterator over the batches of the next
        steps. A batch is a dict of arrays, whose rows are the clips at
        `training.mesh.batch_positions`. It must depend on nothing but the number of the step.
      options: see `HeadOptions`.
      mesh: the output of `make_mesh`. Clips are split over its devices.
      frozen: tree of host arrays, passed to `head.features`.
      state_file: .npz file of the state; None to save nothing.
      key: hash of all that determines the result, except `options`. A file with another key is
        ignored and replaced.
      title: name of the work, for the progress.

    Raises:
      UserError: no head has had a finite loss since the last reading of the losses.
    """
    key = hash_json([key, dataclasses.asdict(options)])
    with mesh_lib.mesh_rules(mesh):
        state, curve = _init_state(head, options), []
        if saved := _read_state(state_file, key, state):
            state, curve = saved
        first_step = int(state.step)
        state = mesh_lib.replicate(state, mesh)
        frozen = mesh_lib.replicate(frozen, mesh)
        root_key = mesh_lib.make_root_key(options.seed, mesh)
        step = jax.jit(functools.partial(_step, head, options), donate_argnums=0)
        batches = open_batches(first_step)
        placed = (mesh_lib.shard_batch(b, mesh, options.batch_size) for b in batches)
        with ProgressMeter(options.total_steps, f"{title} step", initial=first_step) as meter:
            recorder = _Recorder(meter, options.total_steps, state_file, key, curve)
            state = loop.run_steps(
                lambda state, batch: step(state, frozen, batch, root_key),
                state,
                placed,
                total_steps=options.total_steps,
                first_step=first_step,
                callbacks=recorder,
            )
    host = jax.device_get(state)
    return TrainedHeads(host.params, recorder.curve, host.skipped_g)


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.999)


def _init_state(head: Head, options: HeadOptions) -> HeadState:
    """Returns the initial state, as host arrays."""

    def init():
        params = mesh_lib.unbox(head.init(jax.random.key(options.seed)))
        params, moments = jax.tree.map(
            lambda leaf: jnp.repeat(leaf[None], len(options.grid), axis=0),
            (params, _adam().init(params)),
        )
        skipped_g = jnp.zeros(len(options.grid), jnp.int32)
        return HeadState(jnp.zeros((), jnp.int32), params, moments, skipped_g)

    return jax.device_get(jax.jit(init)())


def _step(
    head: Head, options: HeadOptions, state: HeadState, frozen: Any, batch: Any, root_key: jax.Array
) -> tuple[HeadState, jax.Array]:
    """Updates all heads. Returns the new state and the losses [g]."""
    key = jax.random.fold_in(root_key, state.step)
    features = jax.lax.stop_gradient(head.features(frozen, batch, jax.random.fold_in(key, 0)))
    steps = options.warmup_steps, options.total_steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, *steps)
    # The first step has number 1, so that its rate is not 0.
    share = schedule(state.step + 1) if options.warmup_steps else schedule(state.step)
    rate_g, decay_g = (
        jnp.asarray([member[name] for member in options.grid], jnp.float32)
        for name in ("learning_rate", "weight_decay")
    )

    def update(member):
        params, moments, skipped, rate, decay = member
        loss, grads = jax.value_and_grad(head.loss)(params, features, jax.random.fold_in(key, 1))
        finite = jnp.isfinite(loss) & jnp.isfinite(losses.tree_norm(grads))
        updates, new_moments = _adam().update(grads, moments)

        def move(path, leaf, change):
            decayed = decay * leaf if path[-1].key == "kernel" else 0.0
            return leaf - rate * share * (change + decayed)

        new = jax.tree_util.tree_map_with_path(move, params, updates), new_moments
        params, moments = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, moments))
        return params, moments, skipped + ~finite, loss

    members = state.params, state.moments, state.skipped_g, rate_g, decay_g
    at_once = options.heads_at_once or len(options.grid)
    params, moments, skipped_g, loss_g = jax.lax.map(update, members, batch_size=at_once)
    return HeadState(state.step + 1, params, moments, skipped_g), loss_g


class _Recorder(loop.Callbacks):
    """Shows the progress, records the losses in `curve` and saves the state."""

    def __init__(self, meter, steps: int, state_file: Path | None, key: str, curve: list):
        self.curve = curve
        self._meter, self._steps, self._file, self._key = meter, steps, state_file, key
        self._saved_at = time.monotonic()

    def after_step(self, number, state, metrics, diagnostics):
        """Reads the losses every `LOG_EVERY` steps and saves every `SAVE_SECONDS`."""
        del diagnostics
        last = number == self._steps
        if number % LOG_EVERY and not last:
            return
        loss_g = np.asarray(jax.device_get(metrics), np.float64)
        if not np.isfinite(loss_g).any():
            raise UserError(
                f"step {number}: the loss of no head is finite; check the checkpoint for NaN, or "
                "lower the learning rates"
            )
        self.curve.append({"step": number, "loss": loss_g.tolist()})
        self._meter.update(number, f"lowest loss {np.nanmin(loss_g):.4g}")
        if self._file and (last or time.monotonic() - self._saved_at > SAVE_SECONDS):
            _write_state(self._file, self._key, state, self.curve)
            self._saved_at = time.monotonic()


def _write_state(path: Path, key: str, state: HeadState, curve: list) -> None:
    if jax.process_index():
        return
    leaves = jax.tree.leaves(jax.device_get(state))
    arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
    arrays |= {"key": np.array(key), "curve": np.array(json.dumps(curve))}
    atomic_file.remove_temporary_files(path)
    with atomic_file.atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _read_state(path: Path | None, key: str, like: HeadState) -> tuple[HeadState, list] | None:
    """Returns the saved state and curve, or None if there are none with this key."""
    if path is None or not path.is_file():
        return None
    leaves, structure = jax.tree.flatten(like)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if str(archive["key"]) != key:
                return None
            found = [archive[f"leaf{i}"] for i in range(len(leaves))]
            curve = json.loads(str(archive["curve"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({error}). The heads are trained from the start.", flush=True)
        return None
    return jax.tree.unflatten(structure, found), curve
