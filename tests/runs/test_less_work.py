"""Options that change the method to save work: fewer predictions, frozen models in 8 bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax.models import dot_general
from invnext_jax.models.patches import extract_patch_pixels, normalize
from invnext_jax.objectives import reconstruction
from invnext_jax.stages import image_teacher, masked_modeling
from invnext_jax.stages.registry import STAGES

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

KEY = jax.random.key(5)


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def loss_of(stage, setting, batch):
    config, model, params, frozen = setting
    run = jax.jit(functools.partial(stage.loss_fn, config, model))
    return run(params, frozen, batch, KEY)


def test_stage2_compares_only_the_chosen_positions(second, batch):
    config, model, params, frozen = second
    some = changed(config, mask__predicted=0.25)
    loss, metrics = loss_of(stage2, (some, model, params, frozen), batch)

    @jax.jit
    def look(params, frozen, batch):
        video_bthwc = normalize(batch["video"])
        drawn = stage2.sample_masks(some, 3, (4, 4, 4), KEY)
        target_bnd = stage2.compute_target(some, model, frozen, None, video_bthwc)
        every = [d._replace(chosen_bm=None) for d in drawn]
        found = [
            masked_modeling.run_features(model, params, video_bthwc, d).predicted_bmd for d in every
        ]
        return target_bnd, drawn, found

    target_bnd, drawn, found = jax.device_get(look(params, frozen, batch))
    terms = []
    for draws, predicted_bmd in zip(drawn, found, strict=True):
        assert draws.chosen_bm.shape[1] == round(0.25 * draws.masked_bm.shape[1])
        places = [(b, m) for b, row_m in enumerate(draws.chosen_bm) for m in row_m]
        products = [predicted_bmd[b, m] @ target_bnd[b, draws.masked_bm[b, m]] for b, m in places]
        terms.append(np.mean(2 - 2 * np.array(products)))
    np.testing.assert_allclose([metrics[f"loss/predict_{i}"] for i in (0, 1)], terms, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(terms), rtol=1e-5)
    whole = loss_of(stage2, second, batch)[0]
    assert loss != whole and abs(loss - whole) < 0.3 * whole  # both estimate the same mean


def test_stage1_decodes_only_the_chosen_positions(first, batch):
    config, model, params, frozen = first
    some = changed(config, mask__predicted=0.25)
    _, metrics = loss_of(stage1, (some, model, params, frozen), batch)

    @jax.jit
    def look(params, frozen, batch):
        video_bthwc = normalize(batch["video"])
        (draws,) = stage1.apply_teacher(some, frozen, video_bthwc, KEY)[1]
        every = draws._replace(chosen_bm=None)
        latents_bmd = masked_modeling.run_features(model, params, video_bthwc, every).latents_bmd
        patches_bmp = extract_patch_pixels(video_bthwc, draws.masked_bm, 8).reshape(3, -1, 192)
        return draws, latents_bmd, patches_bmp

    draws, latents_bmd, patches_bmp = jax.device_get(look(params, frozen, batch))
    b, m = np.array([(b, m) for b, row_m in enumerate(draws.chosen_bm) for m in row_m]).T
    assert draws.noise.t_n.size == b.size == 3 * round(0.25 * latents_bmd.shape[1])

    @jax.jit
    def decode(params, latents_nd, patches_np, noise):
        apply = functools.partial(model.apply, {"params": params}, method="decode")
        return reconstruction.loss_terms(apply, patches_np, latents_nd[None], noise)["pixels"]

    expected = decode(params, latents_bmd[b, m], patches_bmp[b, m], draws.noise)
    np.testing.assert_allclose(metrics["loss/pixels"], expected, rtol=1e-4)


def test_predicting_all_positions_is_the_default_bitwise(second, batch):
    whole = changed(second[0], mask__predicted=1.0)
    found, wanted = (loss_of(stage2, (config, *second[1:]), batch) for config in (whole, second[0]))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    video = jnp.asarray(batch["video"])
    (draws, *_) = stage2.sample_masks(whole, 3, (4, 4, 4), KEY)
    every_bm = jnp.tile(jnp.arange(draws.masked_bm.shape[1])[None], (3, 1))
    run = jax.jit(functools.partial(masked_modeling.run_features, second[1], second[2], video))
    named = run(draws._replace(chosen_bm=every_bm))
    np.testing.assert_array_equal(named.predicted_bmd, run(draws).predicted_bmd)


def test_predictor_of_one_frame_gets_no_gradient_from_other_frames(second, batch):
    config, model, params, _ = second
    one = changed(config, mask__context_frames=1)
    video_bthwc = normalize(jnp.asarray(batch["video"]))

    def predict(tokens_bnd, sample):
        features = model.bind({"params": params}).predictor
        return features(tokens_bnd, *sample[:2], (4, 4, 4), None, sample.seen_bk)

    for sample in stage2.sample_masks(one, 3, (4, 4, 4), KEY):
        seen = np.asarray(sample.seen_bk)
        frames_bk = np.asarray(sample.keep_bk) // 16
        assert all(
            len(set(row[is_seen])) == 1 for row, is_seen in zip(frames_bk, seen, strict=True)
        )
        tokens_bnd = model.bind({"params": params}).encoder(video_bthwc, sample.keep_bk).tokens_bnd
        gradient = jax.jit(jax.grad(lambda t, s=sample: jnp.sum(predict(t, s) ** 2)))(tokens_bnd)
        size_bn = np.abs(gradient).max(axis=-1)
        c = config.encoder.class_tokens
        assert (size_bn[:, :c] == 0).all() and ((size_bn[:, c:] > 0) == seen).all()
    assert loss_of(stage2, (one, *second[1:]), batch)[0] != loss_of(stage2, second, batch)[0]


@pytest.mark.parametrize(("form", "least"), [("int8", 0.999), ("float8", 0.99)])
def test_8_bit_teacher_is_close_to_float32_teacher(form, least, first, batch):
    config, _, _, frozen = first
    video = normalize(jnp.asarray(batch["video"]))
    exact, rough = (
        jax.jit(
            functools.partial(image_teacher.apply_to_frames, changed(config, quantize_frozen=f))
        )(frozen["teacher"], video)
        for f in ("", form)
    )
    for name in ("taps_lbnd", "pooled_bd"):  # unit vectors
        cosine = jnp.sum(getattr(exact, name) * getattr(rough, name), axis=-1)
        assert least < jnp.min(cosine) < 1 - 1e-6
    np.testing.assert_allclose(rough.attention_bn, exact.attention_bn, rtol=0.1)


def test_quantization_applies_only_to_frozen_models(second, batch):
    config, model, params, frozen = second
    rounded = changed(config, quantize_frozen="int8")

    @jax.jit
    def look(params, frozen, batch):
        video_bthwc = normalize(batch["video"])
        targets = [
            stage2.compute_target(c, model, frozen, None, video_bthwc) for c in (config, rounded)
        ]
        drawn = stage2.sample_masks(config, 3, (4, 4, 4), KEY)
        droppath_keys = [jax.random.fold_in(jax.random.fold_in(KEY, 1), i) for i in range(2)]
        terms = stage2.loss_terms(
            config, model, params, targets[1], video_bthwc, drawn, droppath_keys
        )
        return *targets, stage2.weigh(config, terms)

    exact_bnd, rough_bnd, expected = look(params, frozen, batch)
    cosine_bn = jnp.sum(exact_bnd * rough_bnd, axis=-1)
    assert 0.999 < jnp.min(cosine_bn) < 1 - 1e-6
    found = loss_of(stage2, (rounded, model, params, frozen), batch)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(found - loss_of(stage2, second, batch)[0]) > 1e-5 * found
    assert not dot_general.quantization.value
