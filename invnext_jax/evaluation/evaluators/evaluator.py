"""The interface of evaluators: an `Evaluator` reads `EvalInputs` and returns `Row`s.

To add an evaluator, write a class with the members of `Evaluator`, pass an instance to
`registry.register`, and add its name to `config.evaluators`. Caching, tables and the report need no
changes. An evaluator of a data set without manifests also has a method `needs_manifests`, see
`registry.needs_manifests`. An evaluator may also have an attribute `options`, see
`unused_options.find_unused`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.video_scores import VideoScores


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured value, with the task and the input for which it was measured.

    Attributes:
      evaluator: name of the evaluator.
      name: name of the encoder (see `EvalInputs.name`) or of a baseline ("first_frame").
      input: input of the evaluator: a pooling ("mean"), "pixels", "boxes", "end to end", ...
      task: name of the task; a column of the tables.
      metric: name of the metric, for example "top1". Each metric has its own table.
      value: measured value. Fractions are in [0, 1], not in percent.
      standard_error: standard error of `value`; None if unknown.
      n: number of videos, or other independent units, from which `value` was measured.
      details: additional JSON-serializable values, such as the selected hyperparameters. If they
        include `classes`, the number of classes, tables show the chance level.
      scores: the score of each video; None if the value is not a mean over videos.
    """

    evaluator: str
    name: str
    input: str
    task: str
    metric: str
    value: float
    standard_error: float | None
    n: int
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: VideoScores | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the row for results.json, a flat dict of the details and the fields.

        It does not contain the scores of the videos; see `video_scores.write`. The standard error
        is None if it is not finite, and for a single video.
        """
        fields = dataclasses.asdict(dataclasses.replace(self, scores=None))
        del fields["scores"]
        error = self.standard_error
        is_known = error is not None and math.isfinite(error) and self.n > 1
        fields["standard_error"] = error if is_known else None
        return {**fields.pop("details"), **fields}


class Evaluator(Protocol):
    """An evaluation of a frozen encoder, or a baseline to compare it with.

    Attributes:
      name: name in `config.evaluators` and in the rows. It consists of letters, digits and
        underscores.
      is_baseline: True if the rows do not depend on the parameters of the checkpoint. Baselines run
        only if `config.controls` is set, and their cached rows stay valid when the checkpoint
        changes. Other evaluators run on the checkpoint and, if `config.controls` is set, also on
        the same encoder with random initialization.

    The members `needs_manifests`, `needs_labels`, `uses_predictor`, `dense_features` and
    `hash_files` are optional; see `registry`.
    """

    name: str
    is_baseline: bool

    def check_config(self, config: Any) -> None:
        """Checks the options that this evaluator reads, before anything is computed.

        Args:
          config: the config of the evaluation, see configs/eval/.

        Raises:
          UserError: an option has an invalid value. The message contains the name of the option.
        """
        ...

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Measures and returns the rows. The result must be deterministic for a given `config`.

        Args:
          inputs: `inputs.features(split)` returns cached pooled features. `inputs.encoder` is the
            `FrozenEncoder`. `inputs.dataset` has the videos, batches and labels.
          config: see `check_config`.

        Raises:
          UserError: the data cannot be evaluated, for example because a split has no labels.
        """
        ...
