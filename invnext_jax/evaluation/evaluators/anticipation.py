"""Action anticipation: an attentive probe on a context and on predicted latents of the future.

Paper: Table 8 (EPIC-KITCHENS-100). The protocol is that of V-JEPA 2 (arXiv 2506.09985): the frozen
encoder encodes a clip that ends before the action, the frozen predictor predicts latents of later
time slots, and a probe with one learned query for each task classifies all of them. The options of
`config.anticipation` are in configs/eval/tasks/anticipation.py.

Shape key: b videos, n tokens, d width, k classes, g heads of the grid.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.augmentation import rand_augment
from invnext_jax.evaluation.evaluators import attentive_probe as probe
from invnext_jax.evaluation.evaluators import attentive_training as training
from invnext_jax.evaluation.evaluators import future_latents, recall_rows, separate_data
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.heads import attentive_pooler, class_losses, grid_selection
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.multihost.distributed import log_on_process_0

CONTEXT, FUTURE = "encoder", "encoder and predictor"  # values of `Row.input`
_UNLABELED = -1e4  # a logit whose sigmoid is 0: the clip has no loss and no gradient


class Anticipation:
    """Probes on the context alone and, with a predictor, also on the predicted latents.

    Each task has two rows for each kind of tokens and each k of recall@k; see `recall_rows`.
    """

    name = "anticipation"
    is_baseline = False
    uses_predictor = True
    options = ("anticipation",)

    def needs_manifests(self, config: Any) -> bool:
        """Whether the evaluator reads the manifests of the config."""
        return not separate_data.has_manifests(config.anticipation)

    def hash_files(self, config: Any) -> str:
        """Returns a hash of the evaluator's own manifests and videos."""
        return separate_data.hash_data(config.anticipation, config)

    def check_config(self, config: Any) -> None:
        """Checks `config.anticipation`."""
        settings, name = config.anticipation, "config.anticipation"
        head_training.check_training(settings, name)
        if not 0 <= settings.context_frames <= config.data.frames:
            raise UserError(
                f"{name}.context_frames={settings.context_frames} must be between 0 and "
                f"config.data.frames={config.data.frames}"
            )
        for field in ("grid_frames", "gap_frames", "predicted_frames", "blocks"):
            if settings[field] < 0:
                raise UserError(f"{name}.{field}={settings[field]} must not be negative")
        if not settings.recall_at or min(settings.recall_at) < 1 or settings.heads < 1:
            raise UserError(
                f"{name}.recall_at={settings.recall_at} must be positive numbers, and heads="
                f"{settings.heads} must be at least 1"
            )
        if not 0 < settings.held_out < 1:
            raise UserError(f"{name}.held_out={settings.held_out} must be between 0 and 1")
        options = rand_augment.RandAugment(**settings.rand_augment)
        rand_augment.check_options(options, f"{name}.rand_augment")

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains the probes of the grid on all kinds of tokens at once, and evaluates them."""
        settings = config.anticipation
        opened = separate_data.open_inputs(inputs, settings, config, self.name)
        if opened is None:
            return []
        inputs, config = opened
        grid = future_latents.make_grid(settings, inputs.encoder, config.data.frames)
        encoder = future_latents.make_future_encoder(
            inputs.encoder, grid, unit_tokens=settings.unit_tokens
        )
        if not grid.predicted:
            log_on_process_0(
                f"note: {inputs.encoder.name} has no predictor, so anticipation uses only the "
                "tokens of the context. Runs of Stage 2 have a predictor."
            )
        subject = inputs.with_encoder(self.name, encoder)
        labels = probe.read_labels(inputs, config)
        held_out = grid_selection.hold_out_rows(
            len(next(iter(labels["train"].values()))),
            grid_selection.held_out_share(settings),
            config.seed,
        )
        classes = probe.count_classes(labels, held_out)
        shapes = _token_shapes(inputs.encoder, encoder, grid, config)
        module = build_module(settings, list(classes.values()), shapes)
        trained = _train(subject, config, module, classes, held_out, shapes)
        parts = {}
        for split, selected in grid_selection.scored_rows(held_out).items():
            batches = _prediction_batches(subject, settings, split, selected)
            parts[split] = training.predict(
                module, encoder, trained.params, batches, tuple(classes)
            )
        heads = [
            {**setting._asdict(), "train_loss": float(loss), "diverged": bool(diverged)}
            for setting, loss, diverged in zip(
                trained.settings, trained.loss_g, trained.diverged_g, strict=True
            )
        ]
        rows = []
        for number, (what, task) in enumerate(itertools.product(shapes, classes)):
            scores = {
                split: grid_selection.average_views(probs[number], labels_b[task], index_b)
                for split, (probs, labels_b, index_b) in parts.items()
            }
            probe.check_scores(scores, task)
            seen = labels["train"][task]
            for k in settings.recall_at:
                rows += recall_rows.make_recall_rows(
                    recall_rows.Measured(scores.get("train"), scores["val"], seen[~held_out], seen),
                    heads,
                    k,
                    evaluator=self.name,
                    name=inputs.name,
                    what=what,
                    task=task,
                    videos_key=inputs.dataset.digests["val"],
                    videos_digest=inputs.dataset.video_digests["val"],
                    context_frames=grid.context,
                    predicted_frames=len(grid.predicted) if what == FUTURE else 0,
                )
        return rows


class TokenProbes(nn.Module):
    """Probes that read different parts of the same tokens.

    Attributes:
      probes: one probe for each part.
      shapes: number n and width d of the tokens of each part. Each part consists of the first n
        tokens and their first d channels.
    """

    probes: Sequence[attentive_pooler.AttentiveClassifier]
    shapes: Sequence[tuple[int, int]]

    def __call__(self, x_bnd: jax.Array) -> list[jax.Array]:
        """Returns float32 logits [b k] of all tasks, for one part after the other."""
        pairs = zip(self.probes, self.shapes, strict=True)
        return [y_bk for head, (n, d) in pairs for y_bk in head(x_bnd[:, :n, :d])]


def build_module(
    settings: Any, classes: Sequence[int], shapes: Mapping[str, tuple[int, int]]
) -> TokenProbes:
    """Returns the probes for the parts of the tokens in `shapes`, with one query for each task.

    Raises:
      UserError: the number of attention heads does not divide a width.
    """
    for _, width in shapes.values():
        if width % settings.heads:
            raise UserError(
                f"config.anticipation.heads={settings.heads} must divide the width of the tokens, "
                f"{width}"
            )
    probes = []
    for _ in shapes:
        pooler = attentive_pooler.LearnedQueryPooler(len(classes), settings.blocks, settings.heads)
        probes.append(attentive_pooler.AttentiveClassifier(pooler, tuple(classes), norm=False))
    return TokenProbes(tuple(probes), tuple(shapes.values()))


def focal_loss(logits: Sequence[jax.Array], targets: Sequence[jax.Array]) -> jax.Array:
    """Computes the sigmoid focal loss, summed over classes and tasks and averaged over clips.

    Args:
      logits: float32 [b k] of all tasks, for one or more probes.
      targets: float32 [b k] of all tasks. Rows of zeros have no label and no loss.
    """
    total = jnp.zeros(())
    for logits_bk, target_bk in zip(logits, itertools.cycle(targets), strict=False):
        labeled_b = jnp.sum(target_bk, axis=-1) > 0
        kept_bk = jnp.where(labeled_b[:, None], logits_bk, _UNLABELED)
        loss = class_losses.sigmoid_focal_loss(kept_bk, target_bk)
        total += loss / jnp.maximum(jnp.sum(labeled_b), 1)
    return total


def _token_shapes(
    encoder: FrozenEncoder,
    future_encoder: FrozenEncoder,
    grid: future_latents.TimeGrid,
    config: Any,
) -> dict[str, tuple[int, int]]:
    """Returns the number and width of the tokens of each kind."""
    patches = (config.data.size // encoder.patch) ** 2
    count = grid.context // encoder.tubelet * patches
    shapes = {CONTEXT: (count, encoder.width)}
    if grid.predicted:
        shapes[FUTURE] = count + len(grid.predicted) * patches, future_encoder.width
    return shapes


def _train(subject, config, module, classes, held_out, shapes) -> head_training.TrainedHeads:
    """Trains all heads of the grid, on stored tokens or on clips."""
    settings, encoder = config.anticipation, subject.encoder
    videos = int((~held_out).sum())
    subject.note_large_batch("anticipation", settings, videos)
    steps_per_epoch = videos / settings.batch_size
    # Without clipping, because the probes of one head of the grid must not influence each other.
    options = head_training.HeadTraining.for_epochs(
        settings, steps_per_epoch, config.seed, clip_norm=0.0
    )
    json_settings = run_metadata.config_to_json(config)["anticipation"]
    augmentation = {"cutmix": 0.0, "label_smoothing": 0.0, "rand_augment": settings.rand_augment}
    with contextlib.ExitStack() as stack:
        if settings.augment:
            batches = training.ClipBatches(
                config.data, np.flatnonzero(~held_out), settings.batch_size, 1, config.seed
            )
            stack.callback(batches.close)
        else:
            features = subject.features("train", dense=True)
            rows_b = np.flatnonzero(~held_out[features.index_b])
            batches = training.make_token_batches(
                features, rows_b, settings.batch_size, config.seed
            )
        functions = training.make_functions(
            module,
            encoder,
            classes,
            ml_collections.FrozenConfigDict(augmentation),
            list(shapes.values())[-1],
            focal_loss,
        )
        return head_training.train_heads(
            **functions._asdict(),
            batches=batches,
            grid=head_training.make_grid(settings.learning_rates, settings.weight_decays),
            training=options,
            name=f"{Anticipation.name}, {subject.name}",
            saved=subject.state_file("probes", json_settings, list(classes), videos),
            frozen=encoder.params if settings.augment else None,
        )


def _prediction_batches(subject, settings, split, rows) -> Iterator[training.Batch]:
    """Yields batches of stored tokens or of clips for some rows of a manifest (None: all rows)."""
    if settings.augment:
        batches = subject.dataset.batches(split, rows=rows)
        with ProgressMeter(len(batches), "step", quiet=jax.process_index() > 0) as meter:
            for number, batch in enumerate(batches, 1):
                yield batch
                meter.update(number, f"anticipation, predictions on {split}")
        return
    features = subject.features(split, dense=True)
    used_b = np.arange(len(features))
    if rows is not None:
        used_b = np.flatnonzero(np.isin(features.index_b, rows))
    for first in range(0, len(used_b), probe.CHUNK):
        yield training.read_tokens(features, used_b[first : first + probe.CHUNK])
