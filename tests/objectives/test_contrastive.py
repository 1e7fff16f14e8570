"""Contrastive losses: values compared with closed forms, on one and several devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from invnext_jax.models.layers import l2_normalize
from invnext_jax.objectives import contrastive


def make_pairs(pairs=8, width=6, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return [l2_normalize(jax.random.normal(key, (pairs, width))) for key in keys]


def test_info_nce_of_different_pairs_is_the_mean_of_both_cross_entropies():
    video_bd, text_bd = make_pairs()
    ids = jnp.arange(8)
    loss = contrastive.info_nce(video_bd, text_bd, 5.0, ids, ids)
    logits_bb = 5.0 * np.asarray(video_bd) @ np.asarray(text_bd).T
    entropies = [
        optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(x), ids).mean()
        for x in (logits_bb, logits_bb.T)
    ]
    np.testing.assert_allclose(loss, np.mean(entropies), rtol=1e-5)


def test_info_nce_with_equal_pairs_is_a_cross_entropy_with_soft_targets():
    video_bd, text_bd = make_pairs()
    # Pairs 0 and 1 have the same video, and pairs 1 and 2 the same text.
    video_id_b, text_id_b = np.array([9, 9, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 1, 3, 4, 5, 6, 7])
    target_bb = np.eye(8)
    target_bb[0, :2], target_bb[1, :3], target_bb[2, 1:3] = 1 / 2, 1 / 3, 1 / 2
    logits_bb = 20.0 * np.asarray(video_bd) @ np.asarray(text_bd).T
    entropies = [
        np.mean(np.sum(-target * scipy.special.log_softmax(logits, axis=1), axis=1))
        for logits, target in ((logits_bb, target_bb), (logits_bb.T, target_bb))
    ]
    loss = contrastive.info_nce(
        video_bd, text_bd, 20.0, jnp.asarray(video_id_b), jnp.asarray(text_id_b)
    )
    np.testing.assert_allclose(loss, np.mean(entropies), rtol=1e-5)


def test_equal_captions_are_not_negatives():
    video_bd, text_bd = make_pairs(2)
    text_bd = jnp.stack([text_bd[0], text_bd[0]])
    same, ids = jnp.zeros(2, int), jnp.arange(2)
    gradient = jax.grad(lambda scale: contrastive.info_nce(text_bd, text_bd, scale, ids, same))
    np.testing.assert_allclose(gradient(3.0), 0.0, atol=1e-6)
    # Without the ids, the loss of these pairs cannot be lower either, but its target is one-hot.
    np.testing.assert_allclose(
        contrastive.info_nce(text_bd, text_bd, 3.0, ids, same), math.log(2), rtol=1e-6
    )


def test_loss_and_gradient_of_eight_devices_equal_those_of_one():
    video_bd, text_bd = make_pairs(16)
    ids = jnp.arange(16) // 2

    def loss(video_bd, text_bd, ids):
        return contrastive.info_nce(video_bd, text_bd, 10.0, ids, ids)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    one = compiled(video_bd, text_bd, ids)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    eight = compiled(*jax.device_put((video_bd, text_bd, ids), spec))
    assert len(eight[1][0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)


def test_sigmoid_loss_equals_the_naive_sum():
    rng = np.random.default_rng(0)
    logits_bj = 5 * rng.standard_normal((3, 4))
    labels_bj = rng.random((3, 4)) < 0.5
    total = 0.0
    for b in range(3):
        for j in range(4):
            probability = 1 / (1 + math.exp(-logits_bj[b, j]))
            total -= math.log(probability if labels_bj[b, j] else 1 - probability)
    loss = contrastive.sigmoid_loss(jnp.asarray(logits_bj, jnp.float32), labels_bj)
    np.testing.assert_allclose(loss, total / 3, rtol=1e-5)


def test_sigmoid_loss_of_zero_logits_is_log_two_a_pair():
    loss = contrastive.sigmoid_loss(jnp.zeros((2, 5)), jnp.ones((2, 5), bool))
    np.testing.assert_allclose(loss, 5 * math.log(2), rtol=1e-6)


def test_sigmoid_loss_is_finite_for_wrong_and_certain_logits():
    loss = contrastive.sigmoid_loss(jnp.full((1, 1), -200.0), jnp.ones((1, 1), bool))
    np.testing.assert_allclose(loss, 200.0, rtol=1e-6)
