"""Base class of the masked modeling stages, Stage 1 and Stage 2.

Shape key: b batch, t frames, h w pixels, c channels, s patches of a frame, k visible tokens.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models import decoder, predictor, teachers
from invnext_jax.models.layers import scale_kernels
from invnext_jax.models.patches import Grid, clip_grid, normalize
from invnext_jax.objectives import losses, masks, prediction_task, reconstruction
from invnext_jax.planning import flops
from invnext_jax.stages import image_teacher, initialization
from invnext_jax.stages.masked_modeling import (
    Loss,
    LossInputs,
    MaskedModel,
    MaskKeys,
    MaskSample,
    make_sample,
    run_features,
)
from invnext_jax.stages.unused_options import find_unused
from invnext_jax.training import optimizer
from invnext_jax.training.state import EmaTargets
from invnext_jax.training.step import NO_EMA_TARGETS


class MaskedModelingStage:
    """Base class of the masked modeling stages; see `stage.Stage` for the contract.

    A subclass defines the model, the target, and the tables `losses` and `makers`. The tables
    determine the losses, the parameter groups, the diagnostics, and whether a teacher is needed.

    Attributes:
      losses: maps names to losses, which are summed in this order.
      makers: maps the names of optional modules to functions that make them from the config.
      numbered: whether names of loss terms end with the number of the mask ("predict_0").
    """

    title = ""
    losses: Mapping[str, Loss] = {}
    makers: Mapping[str, Callable[[Any], nn.Module]] = {}
    numbered = True
    unused_options = find_unused

    def make_model(self, config: Any) -> MaskedModel:
        """See `Stage.make_model`."""
        raise NotImplementedError

    def compute_target(
        self,
        config: Any,
        model: MaskedModel,
        frozen: Any,
        teacher_output: teachers.TeacherOutput | None,
        video_bthwc: jax.Array,
        key: jax.Array | None = None,
    ) -> Any:
        """Computes the target of the losses from normalized clips.

        `teacher_output` is None unless the stage needs the teacher. `key` is the random key of the
        step; if it is None, the target is deterministic.
        """
        raise NotImplementedError

    def mask_keys(self, key: jax.Array, number: int) -> MaskKeys:
        """Derives the random keys of mask `number` from the key of the step."""
        raise NotImplementedError

    def check_config(self, config: Any) -> None:
        """See `Stage.check_config`."""
        masks.check_settings(config.mask, (config.data.size // config.encoder.patch) ** 2)
        prediction_task.check_settings(config.mask, config.data.frames)
        for name, weight in config.loss.items():
            if name not in self.losses:
                known = ", ".join(self.losses)
                raise UserError(f"config.loss.{name} is unknown: {self.title} has {known}")
            if weight < 0:
                raise UserError(f"config.loss.{name}={weight} must not be negative")
        if not self.active_losses(config):
            names = ", ".join(f"config.loss.{name}" for name in config.loss)
            raise UserError(f"no loss is active: set one of {names} above 0")
        groups = self.param_groups(config)
        optimizer.check_frozen(config.optimizer, groups)
        if "predictor" in groups:
            predictor.check_config(config)
            initialization.check_text(config)
        if "decoder" in groups:
            decoder.check_config(config)
        if self.needs_teacher(config):
            image_teacher.check_teacher(config)

    def active_losses(self, config: Any) -> tuple[str, ...]:
        """Returns the names of the losses with a non-zero weight, in the order of the table."""
        return tuple(name for name in self.losses if config.loss.get(name, 0))

    def param_groups(self, config: Any) -> tuple[str, ...]:
        """Returns the top-level groups: encoder, pool, and the groups of the active losses.

        The pool is exported with the encoder, so it is included even if no loss depends on it.
        """
        needed = (self.losses[name].modules for name in self.active_losses(config))
        return tuple(dict.fromkeys(("encoder", "pool", *itertools.chain.from_iterable(needed))))

    def make_modules(self, config: Any) -> dict[str, nn.Module]:
        """Returns the optional modules that the active losses need, as a dict by name."""
        groups = self.param_groups(config)
        return {name: make(config) for name, make in self.makers.items() if name in groups}

    def init_params(self, config: Any, model: MaskedModel, key: jax.Array) -> Any:
        """See `Stage.init_params`."""
        data, patch = config.data, config.encoder.patch
        video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
        index_bn = jnp.arange(data.frames * (data.size // patch) ** 2)[None]
        n = index_bn.size - 1
        noise = reconstruction.Noise(jnp.zeros((n, 3 * patch**2)), jnp.zeros((n,), jnp.int32))
        sample = MaskSample(index_bn[:, :1], index_bn[:, 1:], noise)
        params = model.init(key, video_bthwc, sample)["params"]
        return scale_kernels(params, config.init_gain, without=("patch_embed", "decoder"))

    def frozen_groups(self, config: Any) -> tuple[str, ...]:
        """See `Stage.frozen_groups`; no loss uses the pool, and weight decay would shrink it."""
        del config
        return ("pool",)

    def ema_targets(self, config: Any) -> tuple[EmaTargets, float]:
        """See `Stage.ema_targets`."""
        del config
        return NO_EMA_TARGETS

    def needs_teacher(self, config: Any) -> bool:
        """See `Stage.needs_teacher`."""
        compared = any(self.losses[name].needs_teacher for name in self.active_losses(config))
        return compared or masks.needs_attention(config.mask)

    def abstract_frozen(self, config: Any) -> Any:
        """See `Stage.abstract_frozen`; contains the image teacher if it is needed."""
        needed = self.needs_teacher(config)
        return {"teacher": image_teacher.abstract_teacher(config)} if needed else {}

    def init_frozen(self, config: Any, restored: Mapping[str, Any] | None) -> Any:
        """See `Stage.init_frozen`; reads the image teacher if it is needed."""
        del restored
        needed = self.needs_teacher(config)
        return {"teacher": image_teacher.read_teacher(config)} if needed else {}

    def sample_masks(
        self,
        config: Any,
        batch: int,
        grid: Grid,
        key: jax.Array,
        attention_bts: jax.Array | None = None,
    ) -> list[MaskSample]:
        """Samples the masks of a step, the choice of predicted patches, and the diffusion noise.

        Args:
          config: the run's config.
          batch: number of clips.
          grid: frames, rows and columns of the clips.
          key: random key of the step.
          attention_bts: the teacher's attention to each patch, for masks that need it.
        """
        drawn = self.draw_masks(config, batch, grid, jax.random.fold_in(key, 0), attention_bts)
        return [make_sample(config, m, self.mask_keys(key, i), grid) for i, m in enumerate(drawn)]

    def draw_masks(
        self,
        config: Any,
        batch: int,
        grid: Grid,
        key: jax.Array,
        attention_bts: jax.Array | None = None,
    ) -> list[masks.Mask]:
        """Draws only the masks; see `masks.sample_masks`."""
        return masks.sample_masks(key, batch, grid, config.mask, attention_bts)

    def apply_teacher(
        self, config: Any, frozen: Any, video_bthwc: jax.Array, key: jax.Array, batch: Any = None
    ) -> tuple[teachers.TeacherOutput | None, list[MaskSample]]:
        """Samples the masks; first runs the image teacher on normalized clips if it is needed.

        The teacher does not run if `batch` has its output, see `image_teacher.read_stored`.
        """
        output = attention_bts = None
        if self.needs_teacher(config):
            clips = config, frozen["teacher"], video_bthwc, key, image_teacher.read_stored(batch)
            output, attention_bts = image_teacher.apply_to_clips(*clips)
        grid = clip_grid(video_bthwc, config.encoder.patch)
        return output, self.sample_masks(config, video_bthwc.shape[0], grid, key, attention_bts)

    def sample_visible(
        self, config: Any, frozen: Any, video_bthwc: jax.Array, key: jax.Array
    ) -> list[jax.Array]:
        """See `Stage.sample_visible`."""
        attention_bts = None
        if masks.needs_attention(config.mask):
            clips = normalize(video_bthwc)
            attention_bts = image_teacher.apply_to_clips(config, frozen["teacher"], clips, key)[1]
        inputs = video_bthwc.shape[0], clip_grid(video_bthwc, config.encoder.patch)
        sampled = self.draw_masks(config, *inputs, jax.random.fold_in(key, 0), attention_bts)
        return [keep_bk for keep_bk, _ in sampled]

    def loss_fn(
        self, config: Any, model: MaskedModel, params: Any, frozen: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Stage.loss_fn`; returns the weighted sum of the losses and all unweighted terms."""
        video_bthwc = normalize(batch["video"])
        teacher_output, samples = self.apply_teacher(config, frozen, video_bthwc, key, batch)
        target = self.compute_target(config, model, frozen, teacher_output, video_bthwc, key)
        droppath_keys = [self.mask_keys(key, i).droppath for i in range(len(samples))]
        terms = self.loss_terms(config, model, params, target, video_bthwc, samples, droppath_keys)
        return self.weigh(config, terms), {f"loss/{name}": value for name, value in terms.items()}

    def loss_terms(  # noqa: PLR0913
        self,
        config: Any,
        model: MaskedModel,
        params: Any,
        target: Any,
        video_bthwc: jax.Array,
        samples: Sequence[MaskSample],
        droppath_keys: Sequence[jax.Array] | None = None,
    ) -> dict[str, jax.Array]:
        """Computes the loss terms from masks and noise that are already sampled.

        Args:
          config: the run's config.
          model: the stage's model.
          params: parameters of the model.
          target: output of `compute_target`.
          video_bthwc: normalized clips.
          samples: sampled masks.
          droppath_keys: random drop path key for each mask; None disables drop path.

        Returns:
          The terms of the active losses for all masks.
        """
        terms = {}
        for i, sample in enumerate(samples):
            rngs = None if droppath_keys is None else {"droppath": droppath_keys[i]}
            features = run_features(model, params, video_bthwc, sample, rngs)
            inputs = LossInputs(model, params, features, target, video_bthwc, sample)
            for name in self.active_losses(config):
                values = self.losses[name].function(inputs)
                values = values if isinstance(values, dict) else {name: values}
                terms |= {self.term_name(key, i): value for key, value in values.items()}
        return terms

    def term_name(self, name: str, number: int) -> str:
        """Returns the name of the loss term for loss `name` and mask `number`."""
        return f"{name}_{number}" if self.numbered else name

    def loss_name(self, term: str) -> str | None:
        """Returns the name of the loss that `term` belongs to, or None if it is only a metric."""
        name = term.rpartition("_")[0] if self.numbered else term
        return name if name in self.losses else None

    def weigh(self, config: Any, terms: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the sum of the loss terms, each multiplied by the weight of its loss."""
        names = {term: self.loss_name(term) for term in terms}
        return sum(config.loss[name] * terms[term] for term, name in names.items() if name)

    def count_pixel_flops(
        self, config: Any, tokens: flops.TokenLengths, *, dense_windows: bool
    ) -> dict[str, flops.FlopCount]:
        """Counts the FLOPs of the predictor and the decoder if an active loss needs them."""
        groups, counts = self.param_groups(config), {}
        if "predictor" in groups:
            counts["predictor"] = flops.count_predictor(config, tokens, dense_windows=dense_windows)
        if "decoder" in groups:
            counts["decoder"] = flops.count_decoder(config, tokens)
        return counts

    def encoder_gradient_norms(
        self,
        config: Any,
        model: MaskedModel,
        params: Any,
        target: Any,
        video_bthwc: jax.Array,
        samples: Sequence[MaskSample],
    ) -> dict[str, jax.Array]:
        """Computes "encoder_grad/<term>", the encoder's gradient norm for each weighted term."""

        def weighted(encoder_params):
            full = {**params, "encoder": encoder_params}
            terms = self.loss_terms(config, model, full, target, video_bthwc, samples)
            shown = {name: term for name, term in terms.items() if self.loss_name(name)}
            return {f"encoder_grad/{n}": self.weigh(config, {n: x}) for n, x in shown.items()}

        return losses.gradient_norms(weighted, params["encoder"])
