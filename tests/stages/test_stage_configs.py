"""Options of the stages: modules that are built, required values, and errors."""

import functools
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from stage_cases import small

from configs import stage1 as config1
from configs import stage2 as config2
from invnext_jax.errors import UserError
from invnext_jax.models import encoder as encoder_lib
from invnext_jax.stages.registry import STAGES

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]


def test_invalid_stage_configs_are_refused():
    config = small(config1)
    stage1.check_config(config)
    for change, part in (
        ({"teacher": {"size": 48}}, "teacher.size"),
        ({"teacher": {"weights": ""}}, "teacher.weights"),
        ({"teacher": {"taps": 3}}, "teacher.taps"),
        ({"decoder": {"kind": "gan"}}, "decoder.kind"),
        ({"decoder": {"dtype": "float16"}}, "config.decoder.dtype='float16' must be 'float32' or"),
        (
            {"optimizer": {"frozen": ("pool", "encodr")}},
            "contains 'encodr', .*use encoder, ",
        ),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update(change)
        with pytest.raises(UserError, match=part):
            stage1.check_config(wrong)
    with pytest.raises(UserError, match="init_from"):
        stage2.check_config(small(config2))


@pytest.mark.parametrize("resample", [False, True])
def test_teacher_images_that_shift_the_patches_are_refused(resample):
    config = small(config1)
    config.data.size, config.encoder.patch = 378, 14
    config.teacher.update(size=384, patch=14, resample=resample)
    message = "teacher.size=384 is not a multiple of teacher.patch=14, which shifts the teacher's"
    with pytest.raises(UserError, match=f"{message} patches by up to 0.4 .*teacher.size=378$"):
        stage1.check_config(config)
    config.teacher.size = 378
    stage1.check_config(config)


def test_narrow_decoder_logs_a_warning(caplog):
    config = small(config1)
    with caplog.at_level("WARNING"):
        stage1.check_config(config)
    assert "cannot represent their noise" in caplog.text


def test_init_gain_scales_kernels_but_not_the_decoder():
    config = small(config1)
    model = stage1.make_model(config)
    start = {}
    for gain in (1.0, 2.0):
        config.init_gain = gain
        init = functools.partial(stage1.init_params, config, model)
        start[gain] = nn.unbox(jax.jit(init)(jax.random.key(0)))
    for path, ratio in (
        (("encoder", "blocks", "mlp", "fc1", "kernel"), 2.0),
        (("predictor", "project", "fc1", "kernel"), 2.0),
        (("encoder", "patch_embed", "proj", "kernel"), 1.0),
        (("decoder", "input", "kernel"), 1.0),
        (("encoder", "position", "table"), 1.0),
    ):
        one, two = (functools.reduce(lambda tree, k: tree[k], path, start[g]) for g in (1.0, 2.0))
        np.testing.assert_allclose(two, ratio * one, rtol=1e-6)


def built(stage, config):
    """Top-level groups of the parameter tree."""
    init = functools.partial(stage.init_params, config, stage.make_model(config))
    return set(jax.eval_shape(init, jax.random.key(0)))


@pytest.mark.parametrize(
    ("stage", "module", "off", "gone"),
    [
        (stage1, config1, "pixels", {"predictor", "decoder"}),
        (stage1, config1, "align_tokens", {"align"}),
        (stage1, config1, "align_pooled", {"align_pooled"}),
        (stage2, config2, "predict", {"head"}),
        (stage2, config2, "align_visible", {"align_visible"}),
        (stage2, config2, "pixels", {"decoder"}),
    ],
)
def test_a_loss_of_weight_zero_builds_no_modules(stage, module, off, gone):
    config = small(module)
    for name in config.loss:
        config.loss[name] = 1.0
    whole = built(stage, config)
    assert whole == set(stage.param_groups(config))
    config.loss[off] = 0.0
    assert whole - built(stage, config) == gone
    trains_pool = stage is stage1 and off != "align_pooled"
    assert stage.frozen_groups(config) == (() if trains_pool else ("pool",))


def test_stage2_without_a_predicting_loss_has_no_predictor():
    config = small(config2)
    config.loss.update(predict=0.0, align_visible=1.0)
    assert built(stage2, config) == {"encoder", "pool", "align_visible"}


def test_the_image_teacher_is_read_only_where_it_is_needed():
    config = small(config1)
    config.loss.update(align_tokens=0.0, align_pooled=0.0)
    assert stage1.needs_teacher(config)  # the mask depends on its attention
    config.mask.kind = "tube"
    config.teacher.weights = ""
    stage1.check_config(config)
    assert stage1.init_frozen(config, None) == stage1.abstract_frozen(config) == {}

    config = small(config2)
    config.init_from = "runs/stage1"
    config.teacher.weights = ""
    stage2.check_config(config)
    assert set(stage2.abstract_frozen(config)) == {"target"}
    for field, value, frozen in (
        ("mask.kind", "semantic", {"target", "teacher"}),
        ("target.kind", "image", {"teacher"}),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        assert set(stage2.abstract_frozen(other)) == frozen
        with pytest.raises(UserError, match="teacher.weights is empty"):
            stage2.check_config(other)


def test_a_mask_ratio_that_masks_no_patch_is_refused():
    config = small(config1)
    config.mask.ratio = 0.01
    with pytest.raises(UserError, match="masks none of a frame.s 16 patches"):
        stage1.check_config(config)


def test_both_stages_refuse_unknown_kinds():
    for module, stage in ((config1, stage1), (config2, stage2)):
        for field in ("predictor.kind", "mask.kind"):
            config = small(module)
            config.init_from = "runs/stage1"
            config.update_from_flattened_dict({field: "nothing"})
            with pytest.raises(UserError, match=f"{field}='nothing' must be one of"):
                stage.check_config(config)
    config.update_from_flattened_dict({"mask.kind": "tube", "target.kind": "ema"})
    with pytest.raises(UserError, match="target.kind='ema' must be one of 'frozen', 'momentum'"):
        stage2.check_config(config)


def test_all_zero_negative_and_unknown_losses_are_refused():
    config = small(config1)
    config.loss.update(align_tokens=0.0, align_pooled=0.0)
    stage1.check_config(config)
    for weight, message in (
        (0.0, "no loss is active: set one of config.loss.align_pooled, "),
        (-1.0, "config.loss.pixels=-1.0 must not be negative"),
    ):
        config.loss.pixels = weight
        with pytest.raises(UserError, match=re.escape(message)):
            stage1.check_config(config)
    config = small(config1)
    config.loss = {"pixel": 1.0}
    with pytest.raises(UserError, match="config.loss.pixel is unknown: Stage 1 has align_tokens"):
        stage1.check_config(config)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 10])
def test_drop_rates_that_are_no_probability_are_refused(rate):
    config = config1.get_config("tiny")
    config.encoder.drop_path = rate
    with pytest.raises(UserError, match="config.encoder.drop_path=.* at least 0 and less than 1"):
        encoder_lib.check_config(config)


def test_stage2_never_updates_the_pool():
    config = config2.get_config("tiny")
    config.optimizer.frozen = ("encoder",)
    assert "pool" in stage2.frozen_groups(config)
