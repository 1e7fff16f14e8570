"""Both stages on random clips: gradients, diagnostics and config checks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stage_cases import prepared, small

from configs import stage1 as config1
from configs import stage2 as config2
from invnext_jax.models import teachers
from invnext_jax.models.patches import normalize
from invnext_jax.objectives import losses
from invnext_jax.stages import masked_modeling
from invnext_jax.stages.registry import STAGES

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]


def gradients(stage, setting, batch):
    config, model, params, frozen = setting

    @jax.jit
    def run(params, frozen, batch):
        def loss(both):
            return stage.loss_fn(config, model, *both, batch, jax.random.key(5))[0]

        return jax.value_and_grad(loss)((params, frozen))

    return run(params, frozen, batch)


def test_stage1_gradient_reaches_every_trained_parameter(first, batch):
    loss, (grads, _) = gradients(stage1, first, batch)
    assert np.isfinite(loss)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_stage2_gradient_reaches_all_but_the_pool(second, batch):
    _, (grads, _) = gradients(stage2, second, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        reached = np.abs(leaf).max() > 0
        assert reached != (path[0].key == "pool"), jax.tree_util.keystr(path)


def test_stage1_terms_are_weighted_and_summed(first, batch):
    config, model, params, frozen = first
    config = config.copy_and_resolve_references()
    config.loss.update(align_tokens=0.5, align_pooled=2.0, pixels=3.0)
    run = jax.jit(functools.partial(stage1.loss_fn, config, model))
    loss, metrics = run(params, frozen, batch, jax.random.key(0))
    terms = [metrics[f"loss/{name}"] for name in stage1.losses]
    np.testing.assert_allclose(loss, np.dot([0.5, 2.0, 3.0], terms), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss/pixels"], metrics["loss/noise"] + metrics["loss/bound"], rtol=1e-6
    )


def test_same_key_same_loss_and_another_key_another(second, batch):
    config, model, params, frozen = second
    run = jax.jit(functools.partial(stage2.loss_fn, config, model))
    a, b, c = (run(params, frozen, batch, jax.random.key(i))[0] for i in (0, 0, 1))
    assert a == b and a != c


def test_diagnostics_of_stage1(first, batch):
    config, model, params, frozen = first
    found = jax.jit(functools.partial(stage1.diagnostics, config, model))(
        params, frozen, batch, jax.random.key(5)
    )
    assert {f"encoder_grad/{name}" for name in stage1.losses} <= found.keys()
    assert found["conditioning_gap"] != 0 and all(np.isfinite(v) for v in found.values())
    # A decoder that ignores its latents has no gap.
    deaf = jax.tree.map(lambda x: x, params)
    deaf["decoder"]["latent"] = jax.tree.map(jnp.zeros_like, params["decoder"]["latent"])
    found = jax.jit(functools.partial(stage1.diagnostics, config, model))(
        deaf, frozen, batch, jax.random.key(5)
    )
    assert found["conditioning_gap"] == 0 and found["encoder_grad/pixels"] == 0


def test_diagnostics_of_stage2_contain_the_position_share(second, batch):
    config, model, params, frozen = second
    run = jax.jit(functools.partial(stage2.diagnostics, config, model))
    found = run(params, frozen, batch, jax.random.key(5))
    assert all(np.isfinite(v) for v in found.values())
    same = {"video": np.repeat(batch["video"][:1], 3, axis=0)}
    alike = run(params, frozen, same, jax.random.key(5))
    np.testing.assert_allclose(alike["target_position_share"], 1.0, atol=1e-4)
    np.testing.assert_allclose(alike["position_loss"], 0.0, atol=1e-4)
    assert found["target_position_share"] < 1


def test_loss_of_the_mean_target_of_a_clip_is_a_closed_form(second, batch):
    """The cosine of unit vectors with their mean is on average the length of the mean."""
    config, model, params, frozen = second
    key = jax.random.key(5)
    found = jax.jit(functools.partial(stage2.diagnostics, config, model))(
        params, frozen, batch, key
    )
    video = normalize(jnp.asarray(batch["video"]))
    target_bnd = np.asarray(stage2.compute_target(config, model, frozen, None, video))
    lengths_b = np.linalg.norm(target_bnd.mean(axis=1), axis=-1)
    np.testing.assert_allclose(found["clip_loss"], np.mean(2 - 2 * lengths_b), rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_plain_pixel_heads_train(kind, batch):
    config = small(config1)
    config.decoder.kind = kind
    config.decoder.depth = 3
    model, params = prepared(stage1, config)
    (sample,) = stage1.sample_masks(config, 3, (4, 4, 4), jax.random.key(0), jnp.ones((3, 4, 16)))
    video = normalize(jnp.asarray(batch["video"]))
    latents = jax.random.normal(jax.random.key(1), (3, sample.masked_bm.shape[1], 32))

    def pixels(decoder_params):
        trained = {**params, "decoder": decoder_params}
        return masked_modeling.pixel_terms(model, trained, latents, video, sample)["pixels"]

    loss, grads = jax.jit(jax.value_and_grad(pixels))(params["decoder"])
    assert loss > 0 and losses.tree_norm(grads) > 0


@pytest.mark.parametrize("kind", ["tube", "random", "multi_block"])
def test_other_masks_step(kind, batch, first):
    config = small(config1)
    config.mask.kind = kind
    found = jax.jit(functools.partial(stage1.loss_fn, config, first[1]))(
        first[2], first[3], batch, jax.random.key(0)
    )
    assert np.isfinite(found[0])


def test_vit_predictor_steps(batch, first):
    config = small(config2)
    config.predictor.kind = "vit"
    model, params = prepared(stage2, config)
    run = jax.jit(functools.partial(stage2.loss_fn, config, model))
    frozen = {"target": first[2]["encoder"]}
    assert np.isfinite(run(params, frozen, batch, jax.random.key(0))[0])


def test_the_image_target_is_the_deepest_tap(batch):
    config = small(config2)
    config.target.kind = "image"
    taps = np.random.default_rng(0).standard_normal((2, 3 * 4, 16, 32))
    seen = teachers.TeacherOutput(jnp.asarray(taps), None, None)
    video = jnp.zeros((3, 4, 32, 32, 3))
    found = stage2.compute_target(config, None, {}, seen, video)
    np.testing.assert_allclose(found[1, 2 * 16 + 5], taps[-1, 4 + 2, 5], rtol=1e-6)


@pytest.mark.parametrize("drops", [False, True])
def test_the_target_has_drop_path_only_if_configured(drops, batch, second):
    config = second[0].copy_and_resolve_references()
    config.encoder.drop_path, config.target.drop_path = 0.5, drops
    model, frozen = stage2.make_model(config), {"target": second[2]["encoder"]}
    video = normalize(jnp.asarray(batch["video"]))
    one, two = (
        stage2.compute_target(config, model, frozen, None, video, jax.random.key(i)) for i in (0, 1)
    )
    assert bool(jnp.any(one != two)) == drops


def test_losses_of_stage2_are_weighted_and_summed_over_the_masks():
    terms = {
        **{"predict_0": 1.0, "predict_1": 2.0, "align_visible_0": 4.0, "align_visible_1": 8.0},
        **{"pixels_0": 16.0, "noise_0": 99.0, "bound_0": 99.0},
    }
    config = small(config2)
    config.loss.update(predict=1.0, align_visible=0.5, pixels=2.0)
    assert stage2.weigh(config, terms) == 1 + 2 + 0.5 * (4 + 8) + 2 * 16
