"""Trains and applies heads on the tokens of a frozen encoder.

If the ground truth belongs to the videos of the manifests, the tokens of the final layer are
computed once and stored, up to `config.features.max_gb`. Otherwise, the encoder runs in each step.

Shape key: b clips, t time slots, n tokens of a slot, d width, l layers, g heads of the grid.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.dense.stored_truth import TruthWithTokens
from invnext_jax.evaluation.dense.truth_clips import TruthClips
from invnext_jax.evaluation.dense.truth_source import WORLD
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.feature_store.extraction import local_mesh, pad_for_devices
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.head_training import HeadTraining, TrainedHeads
from invnext_jax.evaluation.heads import grid_selection
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.truth.box_tracks import BoxTracks
from invnext_jax.evaluation.truth.truth import SkippedRows, Truth
from invnext_jax.training import mesh as mesh_lib

Batch = Mapping[str, np.ndarray]


def check_settings(settings: Any, name: str) -> None:
    """Checks the training options in a section of the config.

    Raises:
      UserError: an option has an invalid value.
    """
    head_training.check_training(settings, name)
    for field in ("width", "heads", "stride"):
        if settings[field] <= 0:
            raise UserError(f"{name}.{field}={settings[field]} must be positive")
    if settings.width % settings.heads:
        raise UserError(
            f"{name}.width={settings.width} must be divisible by heads={settings.heads}"
        )
    if grid_selection.is_grid(settings) and not 0 < settings.held_out < 1:
        raise UserError(f"{name}.held_out={settings.held_out} must be between 0 and 1")
    if settings.memory_gb < 0:
        raise UserError(f"{name}.memory_gb={settings.memory_gb} must not be negative")


def open_truths(
    inputs: EvalInputs, settings: Any, *, several_layers: bool = False
) -> tuple[dict[str, Truth], str]:
    """Opens the truth of both splits for a section of the config.

    Args:
      inputs: the inputs of the evaluator.
      settings: the section.
      several_layers: whether the head reads other tokens than those of the final layer.

    Returns:
      The truth of each split, and the name of the array that heads read: "tokens" if the tokens are
      stored, otherwise "video".
    """
    truths = {split: inputs.dataset.open_truth(settings, split) for split in SPLITS}
    for split, truth in truths.items():
        if isinstance(truth, BoxTracks) and (text := truth.describe_rates()):
            inputs.notes.add(f"{truth.name}, {split}: {text}")
    if settings.data != WORLD or several_layers or not inputs.fits_dense():
        return truths, "video"
    stored = {
        split: TruthWithTokens(truth, inputs.features(split, dense=True))
        for split, truth in truths.items()
    }
    return stored, "tokens"


def note_skipped(
    inputs: EvalInputs, evaluator: str, clips: str, skipped: SkippedRows, count: int
) -> None:
    """Adds a note about rows without readable ground truth, if there are any.

    Args:
      inputs: the inputs of the evaluator.
      evaluator: its name.
      clips: what the rows are, in words.
      skipped: the skipped rows.
      count: number of all rows.
    """
    if text := skipped.describe(count):
        inputs.notes.add(f"{evaluator}, {clips}: {text}")


class HeadFitting:
    """A head on the final tokens or on several layers of a frozen encoder.

    Args:
      encoder: the encoder.
      layers: layers that the head reads; () for the final tokens.
      init_params: function (key, tokens of one clip) -> parameters of the head. The tokens are
        [b t n d], or a sequence of them for `layers`.
      predict: function (parameters, tokens, arrays of the batch) -> predictions [b ...].
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        layers: Sequence[int],
        init_params: Callable[[jax.Array, Any], Any],
        predict: Callable[[Any, Any, Any], Any],
    ):
        self._encoder, self._layers = encoder, tuple(layers)
        self._init_params, self._predict = init_params, predict

    def train(
        self,
        clips: TruthClips,
        loss_fn: Callable[[Any, Any], jax.Array],
        settings: Any,
        *,
        seed: int,
        name: str,
        saved: StateFile | None,
    ) -> TrainedHeads:
        """Trains all heads of the grid of a section of the config.

        Args:
          clips: training clips with ground truth.
          loss_fn: function (predictions, arrays of the batch) -> float32 loss.
          settings: the section, see `check_settings`.
          seed: seed of the initial parameters and of the order of the clips.
          name: name of the training, shown with the progress.
          saved: see `head_training.train_heads`.
        """
        batch_size = min(settings.batch_size, len(clips.rows))
        options = HeadTraining.for_epochs(settings, len(clips.rows) / batch_size, seed)
        first = {k: v[:1] for k, v in clips.batch(0, batch_size, seed).items()}
        shapes = jax.eval_shape(self._read_tokens, self._encoder.params, first)

        def init_params(key):
            zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)
            return self._init_params(key, zeros)

        def loss(params, inputs, key):
            del key
            return loss_fn(self._predict(params, inputs["tokens"], inputs), inputs)

        def prepare(frozen, batch, key):
            del key
            return {**batch, "tokens": self._read_tokens(frozen, batch)}

        return head_training.train_heads(
            init_params,
            loss,
            lambda step: clips.batch(step, batch_size, seed),
            head_training.make_grid(settings.learning_rates, settings.weight_decays),
            options,
            name=name,
            saved=saved,
            prepare=prepare,
            frozen=self._encoder.params,
        )

    def predict(
        self, params: Any, batches: Iterable[Batch], names: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields predictions [g b ...] of all heads together with each batch, without padding.

        Args:
          params: parameters of the heads, with a leading axis g.
          batches: batches of `TruthBatches`.
          names: names of the arrays that are used.
        """
        mesh = local_mesh()
        with mesh_lib.mesh_rules(mesh):
            frozen = mesh_lib.replicate(self._encoder.params, mesh)
            params = mesh_lib.replicate(params, mesh)
            sharding = mesh_lib.batch_sharding(mesh)

            @jax.jit
            def run(frozen, params, arrays):
                tokens = self._read_tokens(frozen, arrays)
                heads = jax.vmap(self._predict, in_axes=(0, None, None))
                return heads(params, tokens, arrays)

            for batch in batches:
                arrays = {name: pad_for_devices(batch[name], mesh) for name in names}
                found = run(frozen, params, jax.device_put(arrays, sharding))
                real = int((batch["index"] >= 0).sum())  # padding is at the end
                predictions = jax.tree.map(lambda x, real=real: np.asarray(x)[:, :real], found)
                yield predictions, {name: array[:real] for name, array in batch.items()}

    def _read_tokens(self, frozen: Any, arrays: Any) -> Any:
        """Returns the final tokens [b t n d], or a list with the tokens of each layer."""
        if "tokens" in arrays:
            return arrays["tokens"]
        out = self._encoder.apply(frozen, arrays["video"], self._layers)
        return list(out.layers_lbtnd) if self._layers else out.tokens_btnd


def choose_heads(
    settings: Any, trained: TrainedHeads, held_out_g: np.ndarray | None, val_g: np.ndarray
) -> dict[str, int]:
    """Selects the heads with the lowest errors, whose results are reported.

    Args:
      settings: the section of the config.
      trained: the heads; those that diverged are not selected.
      held_out_g: error on held-out training videos; None for a single head.
      val_g: error on the evaluated videos.

    Returns:
      A dict from the suffix of a row's input to the index of the head. The suffixes are "" and, for
      a grid, also ", best on val".
    """

    def best(error_g):
        return int(np.argmin(np.where(trained.diverged_g, np.inf, np.nan_to_num(error_g, nan=1e9))))

    if not grid_selection.is_grid(settings):
        return {"": 0}
    return {"": best(held_out_g), ", best on val": best(val_g)}
