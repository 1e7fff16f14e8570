"""Attentive probe: cross-attention heads on all tokens, trained with a grid of hyperparameters.

Paper: section 4.1, appendix A.2 and Table 15. The head, the optimization and the augmentation are
options of `config.attentive_probe`; see configs/eval/tasks/attentive_probe.py.

Shape key: b videos, k classes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from invnext_jax.checkpointing import run_metadata
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.augmentation import rand_augment
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators import attentive_training as training
from invnext_jax.evaluation.evaluators.classification import check_classes
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.heads import attentive_pooler, grid_selection
from invnext_jax.evaluation.inputs import EvalInputs

HEADS = ("mean_query", "learned_query")
CHUNK = 64  # videos whose cached tokens are read at once for predictions


class AttentiveProbe:
    """Attentive probes of all tasks, with two rows for each task; see `grid_selection`."""

    name = "attentive_probe"
    is_baseline = False
    options = ("attentive_probe",)

    def check_config(self, config: Any) -> None:
        """Checks `config.attentive_probe`."""
        settings, name = config.attentive_probe, "config.attentive_probe"
        head_training.check_training(settings, name)
        if settings.head not in HEADS:
            raise UserError(f"{name}.head={settings.head!r} must be one of {HEADS}")
        if settings.crops not in (1, 3):
            raise UserError(f"{name}.crops={settings.crops} must be 1 or 3")
        if not 0 < settings.held_out < 1:
            raise UserError(f"{name}.held_out={settings.held_out} must be between 0 and 1")
        if not 0 <= settings.label_smoothing < 1:
            raise UserError(f"{name}.label_smoothing={settings.label_smoothing} must be in [0, 1)")
        if settings.cutmix < 0 or settings.repeats < 1 or settings.heads < 1:
            raise UserError(
                f"{name}.cutmix={settings.cutmix} must not be negative, and repeats="
                f"{settings.repeats} and heads={settings.heads} must be at least 1"
            )
        options = rand_augment.RandAugment(**settings.rand_augment)
        rand_augment.check_options(options, f"{name}.rand_augment")

    def dense_features(self, config: Any) -> tuple[tuple[str, int], ...]:
        """Returns the splits and views whose tokens are read; see `registry.dense_features`."""
        settings = config.attentive_probe
        return () if settings.augment else (("train", 1), ("val", settings.crops))

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains all heads of the grid and evaluates them on both splits."""
        settings, encoder = config.attentive_probe, inputs.encoder
        if encoder.width % settings.heads:
            raise UserError(
                f"config.attentive_probe.heads={settings.heads} must divide the width of the "
                f"encoder, {encoder.width}"
            )
        labels = read_labels(inputs, config)
        held_out = grid_selection.hold_out_rows(
            len(next(iter(labels["train"].values()))),
            grid_selection.held_out_share(settings),
            config.seed,
        )
        classes = count_classes(labels, held_out)
        module = build_module(settings, list(classes.values()))
        trained = _train(inputs, config, module, classes, held_out)
        scores = {}
        for split, selected in grid_selection.scored_rows(held_out).items():
            batches = _prediction_batches(inputs, settings, split, selected)
            scores[split] = training.predict(
                module, encoder, trained.params, batches, tuple(classes)
            )
        grid = [
            {**setting._asdict(), "train_loss": float(loss), "diverged": bool(diverged)}
            for setting, loss, diverged in zip(
                trained.settings, trained.loss_g, trained.diverged_g, strict=True
            )
        ]
        rows = []
        for number, task in enumerate(classes):
            parts = {
                split: grid_selection.average_views(probs[number], labels_v[task], index_v)
                for split, (probs, labels_v, index_v) in scores.items()
            }
            check_scores(parts, task)
            rows += grid_selection.make_grid_rows(
                parts.get("train"),
                parts["val"],
                grid,
                evaluator=self.name,
                name=inputs.name,
                what=settings.head.replace("_", " "),
                task=task,
                classes=classes[task],
            )
        return rows


def build_module(settings: Any, classes: list[int]) -> nn.Module:
    """Returns the module of all tasks: tokens [b n d] -> list of logits [b k].

    With mean queries, each task has a separate pooler. With learned queries, the tasks share the
    blocks, and each task has a separate query, as in V-JEPA 2.
    """
    if settings.head == "learned_query":
        pooler = attentive_pooler.LearnedQueryPooler(len(classes), settings.blocks, settings.heads)
        return attentive_pooler.AttentiveClassifier(pooler, tuple(classes), norm=False)
    return attentive_pooler.SeparateHeads(
        tuple(
            attentive_pooler.AttentiveClassifier(
                attentive_pooler.MeanQueryPooler(settings.width, settings.heads, settings.mlp), (k,)
            )
            for k in classes
        )
    )


def read_labels(inputs: EvalInputs, config: Any) -> dict[str, dict[str, np.ndarray]]:
    """Returns the labels [b] of all rows of the manifests, by split and task."""
    rules, found = AccessRules.from_config(config.data), {}
    for split, name in inputs.dataset.manifests.items():
        columns = manifest_lib.read_manifest(name, rules).labels
        found[split] = {
            task: np.asarray(columns[manifest_lib.LABEL_PREFIX + task])
            for task in inputs.dataset.tasks
        }
    return found


def count_classes(
    labels: Mapping[str, Mapping[str, np.ndarray]], held_out: np.ndarray
) -> dict[str, int]:
    """Returns the number of classes of each task.

    Raises:
      UserError: fewer than two classes are left for training, or no held-out video has a label.
    """
    classes = {}
    for task, train_b in labels["train"].items():
        check_classes(train_b[(train_b >= 0) & ~held_out], task)
        classes[task] = int(max(train_b.max(), labels["val"][task].max())) + 1
    return classes


def _train(inputs, config, module, classes, held_out) -> head_training.TrainedHeads:
    """Trains all heads of the grid."""
    settings, encoder = config.attentive_probe, inputs.encoder
    videos = int((~held_out).sum())
    inputs.note_large_batch("attentive_probe", settings, videos)
    steps_per_epoch = videos / settings.batch_size
    options = head_training.HeadTraining.for_epochs(settings, steps_per_epoch, config.seed)
    json_settings = run_metadata.config_to_json(config)["attentive_probe"]
    slots = config.data.frames // encoder.tubelet
    token_shape = slots * (config.data.size // encoder.patch) ** 2, encoder.width
    with contextlib.ExitStack() as stack:
        if settings.augment:
            batches = training.ClipBatches(
                config.data,
                np.flatnonzero(~held_out),
                settings.batch_size,
                settings.repeats,
                config.seed,
            )
            stack.callback(batches.close)
        else:
            features = inputs.features("train", dense=True)
            rows_b = np.flatnonzero(~held_out[features.index_b])
            batches = training.make_token_batches(
                features, rows_b, settings.batch_size, config.seed
            )
        return head_training.train_heads(
            **training.make_functions(module, encoder, classes, settings, token_shape)._asdict(),
            batches=batches,
            grid=head_training.make_grid(settings.learning_rates, settings.weight_decays),
            training=options,
            name=f"{AttentiveProbe.name}, {inputs.name}",
            saved=inputs.state_file(AttentiveProbe.name, json_settings, list(classes), videos),
            frozen=encoder.params if settings.augment else None,
        )


def _prediction_batches(inputs, settings, split, rows) -> Iterator[training.Batch]:
    """Yields batches of stored tokens or of clips for some rows of a manifest (None: all rows)."""
    views = settings.crops
    if settings.augment:
        yield from inputs.dataset.batches(split, views=views, rows=rows)
        return
    features = inputs.features(split, dense=True, views=views if split == "val" else 1)
    used = np.arange(len(features))
    if rows is not None:
        used = np.flatnonzero(np.isin(features.index_b, rows))
    for first in range(0, len(used), CHUNK):
        yield training.read_tokens(features, used[first : first + CHUNK])


def check_scores(parts: Mapping[str, Any], task: str) -> None:
    """Raises `UserError` if a split has no readable video with a label."""
    for split, part in parts.items():
        if part is None:
            raise UserError(
                "the probe cannot be selected or measured, because no such video of the "
                f"{SPLITS[split]} manifest is readable and has a label_{task}: add videos, or "
                "remove the task from config.tasks"
            )
