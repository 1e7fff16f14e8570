"""Zero-shot classification, video-text retrieval and multiple choice by locked-image tuning (LiT).

Paper: Tables 9 and 10. The encoder is frozen; a projector and an alignment layer are trained on the
captions of the training videos, and the text tower if `config.text.train_text` is set. The options
are in `config.text`; see configs/eval/tasks/zero_shot.py.

Shape key: b videos, j captions, d width.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.features import POOLINGS, describe_poolings
from invnext_jax.evaluation.heads import text_alignment
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.text import alignment_training, caption_data, scores
from invnext_jax.evaluation.text.text_encoder import (
    TextEncoder,
    load_text_encoder,
    make_text_encoder,
)

NAME = "text_alignment"


class TextAlignment:
    """Zero-shot classification, retrieval and multiple choice; one row for each task and metric."""

    name = NAME
    is_baseline = False
    options = ("text",)
    needs_labels = False

    def check_config(self, config: Any) -> None:
        """Checks `config.text`."""
        check_config(config)

    def dense_features(self, config: Any) -> tuple[tuple[str, int], ...]:
        """Returns the splits and views whose tokens are read; see `registry.dense_features`."""
        is_read = config.text.pooling == alignment_training.ATTENTION and not config.text.augment
        return (("train", 1), ("val", 1)) if is_read else ()

    def hash_files(self, config: Any) -> str:
        """Returns a hash of the files of captions, class names, choices and the text tower."""
        return caption_data.hash_files(config)

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains the alignment and evaluates it on the held-out videos."""
        settings, encoder = config.text, inputs.encoder
        if _lacks_output(encoder, settings.pooling):
            inputs.notes.add(
                f"{NAME}: {inputs.name} has no output for config.text.pooling="
                f"{settings.pooling!r}, skipped"
            )
            return []
        texts = caption_data.read_texts(config, inputs.dataset.tasks)
        for note in (*describe_poolings(encoder, (settings.pooling,)), *texts.notes):
            inputs.notes.add(note)
        if settings.encoder:
            text = load_text_encoder(settings.encoder)
        else:
            text = make_text_encoder(texts.vocabulary, config.seed)
        rules = AccessRules.from_config(config.data)
        manifest = manifest_lib.read_manifest(config.train_manifest, rules)
        model = alignment_training.train(inputs, config, texts.train, text, len(manifest.paths))
        video_bd, index_b = alignment_training.embed_videos(inputs, config, model)
        embed = functools.partial(_embed_texts, text, model.params.get("text", text.params))
        temperature = 1 / float(text_alignment.inverse_temperature(model.params["logits"]))
        details = {"train_loss": model.loss, "temperature": temperature}
        details["texts_digest"] = self.hash_files(config)
        make_row = functools.partial(
            Row, evaluator=NAME, name=inputs.name, input=settings.pooling, details=details
        )
        rows = []
        manifest = manifest_lib.read_manifest(config.val_manifest, rules)
        for task, prompts in texts.prompts.items():
            labels_b = manifest.labels[manifest_lib.LABEL_PREFIX + task][index_b]
            rows.append(
                scores.classify(video_bd, index_b, labels_b, embed, prompts, task, make_row)
            )
        if texts.val is not None:
            rows += scores.retrieve(video_bd, index_b, embed, texts.val, make_row)
        for name, choices in texts.choices.items():
            rows.append(scores.choose(video_bd, index_b, embed, choices, name, make_row))
        return rows


def check_config(config: Any) -> None:
    """Checks `config.text`.

    Raises:
      UserError: an option has an invalid value.
    """
    settings = config.text
    poolings = (*POOLINGS, alignment_training.ATTENTION)
    for name, known in (("pooling", poolings), ("loss", text_alignment.LOSSES)):
        if settings[name] not in known:
            raise UserError(f"config.text.{name}={settings[name]!r} must be one of {known}")
    for name in ("temperature", "learning_rate", "epochs", "batch_size"):
        if not settings[name] > 0:
            raise UserError(f"config.text.{name}={settings[name]} must be positive")
    if not 0 <= settings.warmup_epochs < settings.epochs:
        raise UserError(
            f"config.text.warmup_epochs={settings.warmup_epochs} must be at least 0 and less than "
            f"epochs={settings.epochs}"
        )
    if settings.weight_decay < 0 or settings.pool_width < 1 or settings.pool_heads < 1:
        raise UserError(
            f"config.text.weight_decay={settings.weight_decay} must not be negative, and "
            f"pool_width={settings.pool_width} and pool_heads={settings.pool_heads} must be at "
            "least 1"
        )
    _check_texts(settings)


def _check_texts(settings: Any) -> None:
    """Checks the options of the text tower and of the prompts."""
    if not settings.encoder and not settings.train_text:
        raise UserError(
            "config.text.encoder is empty, so the text tower has random parameters: set "
            "config.text.train_text=True, or set config.text.encoder to the folder of a SigLIP or "
            "CLIP model"
        )
    for template in settings.templates:
        if template.replace("{}", "", 1).count("{") or template.count("{}") != 1:
            raise UserError(
                f"config.text.templates has {template!r}, which must contain {{}} exactly once: "
                "write {} where the class name is inserted"
            )
    if not settings.templates:
        raise UserError("config.text.templates is empty: add at least '{}'")


def _embed_texts(text: TextEncoder, params: Any, texts: Sequence[str]) -> np.ndarray:
    """Encodes texts. Repeated texts are encoded only once."""
    distinct = sorted(set(texts))
    number = {value: i for i, value in enumerate(distinct)}
    text_jd = text.encode(params, text.tokenize(distinct))
    return text_jd[[number[value] for value in texts]]


def _lacks_output(encoder: Any, pooling: str) -> bool:
    return (pooling == "pool" and not encoder.pool_width) or (
        pooling == "class" and not encoder.class_tokens
    )
