"""The interface of a training stage. It covers everything that differs between stages.

Training, planning, evaluation and benchmarks use stages only through `Stage`. To add a stage, write
a class with these methods and add an instance to `registry.STAGES`; masked modeling stages inherit
most of them from `masked_stage.MaskedModelingStage`.

Shape key: b batch, t frames, h w pixels, c channels, y x grid rows and columns.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from invnext_jax.planning.flops import FlopCount
from invnext_jax.training.state import EmaTargets


class Visualization(NamedTuple):
    """Images of one kind for a few clips, shown in reports.

    Attributes:
      title: short title.
      caption: explanation of the images.
      video_bthwc: uint8 clips.
      visible_btyx: bool, the visible patches.
      hides_masked: whether to show masked patches in gray; otherwise, visible patches are outlined.
    """

    title: str
    caption: str
    video_bthwc: np.ndarray
    visible_btyx: np.ndarray
    hides_masked: bool


class Stage(Protocol):
    """A training stage.

    A stage has no state: every method is a pure function of its arguments. `config` is the config
    of a run, and `model` is the output of `make_model`. `params` are the trained parameters.
    `frozen` are the frozen parameters and, during training, the EMA targets. `batch` is a dict with
    `video`, uint8 [b t h w c].

    Attributes:
      title: name of the stage in reports and tables.
    """

    title: str

    def check_config(self, config: Any) -> None:
        """Checks the options of this stage.

        Raises:
          UserError: an option has an invalid value.
        """

    def unused_options(self, config: Any) -> dict[str, str]:
        """Returns the options of this stage that have no effect.

        Args:
          config: the run's config, which has passed the checks.

        Returns:
          A dict from the dotted name of an option to the reason, and what to change, as a clause
          that follows "because".
        """

    def make_model(self, config: Any) -> Any:
        """Makes the model, a linen module with all trained parts."""

    def init_params(self, config: Any, model: Any, key: jax.Array) -> Any:
        """Initializes the trained parameters; returns a dict of groups, boxed with logical axes.

        Called inside `jax.jit` or `jax.eval_shape`.
        """

    def warm_start(self, config: Any, restored: Mapping[str, Any] | None) -> dict[str, Any]:
        """Selects the parameters that replace those of `init_params`, by path in the tree.

        Args:
          config: the run's config.
          restored: parameters of the run `config.init_from`, by group; None if it is not set.

        Raises:
          UserError: parameters that the stage needs are missing.
        """

    def frozen_groups(self, config: Any) -> tuple[str, ...]:
        """Returns the top-level parameter groups that the optimizer must not update."""

    def ema_targets(self, config: Any) -> tuple[EmaTargets, float]:
        """Returns the EMA targets and their momentum, or `NO_EMA_TARGETS` if there are none.

        A target is an exponential moving average of trained parameters. After each update it
        becomes `momentum` * target + (1 - `momentum`) * parameters.
        """

    def needs_teacher(self, config: Any) -> bool:
        """Returns whether a loss, a target or the mask needs the frozen image teacher."""

    def abstract_frozen(self, config: Any) -> Any:
        """Returns the shapes and logical axes of the frozen parameters, by group."""

    def init_frozen(self, config: Any, restored: Mapping[str, Any] | None) -> Any:
        """Reads the frozen parameters, by group, as host arrays.

        Args:
          config: the run's config.
          restored: see `warm_start`.

        Raises:
          UserError: a file or group is missing or does not match the config.
        """

    def loss_fn(
        self, config: Any, model: Any, params: Any, frozen: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the float32 loss of a batch, and float32 scalar metrics by name."""

    def diagnostics(
        self, config: Any, model: Any, params: Any, frozen: Any, batch: Any, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Computes float32 scalar metrics, by name, that are too expensive for every step."""

    def count_flops(self, config: Any, *, dense_windows: bool = False) -> dict[str, FlopCount]:
        """Counts the FLOPs of a training step per clip, by component.

        Args:
          config: the run's config.
          dense_windows: see `flops.count_predictor`.
        """

    def sample_visible(
        self, config: Any, frozen: Any, video_bthwc: jax.Array, key: jax.Array
    ) -> list[jax.Array]:
        """Samples the same masks as a training step with `key`.

        Args:
          config: the run's config.
          frozen: dict with the image teacher's parameters as "teacher", if the mask needs them.
          video_bthwc: uint8 clips.
          key: random key of the step.

        Returns:
          Positions of the visible patches, int32 [b k], for each mask.
        """

    def visualize(
        self, config: Any, params: Any, video_bthwc: np.ndarray, seed: int = 0
    ) -> list[Visualization]:
        """Makes the images that reports show for this stage.

        Args:
          config: the run's config.
          params: trained parameters of the run.
          video_bthwc: uint8 clips.
          seed: seed of the masks and the noise.

        Raises:
          UserError: the image teacher is needed and cannot be read.
        """
