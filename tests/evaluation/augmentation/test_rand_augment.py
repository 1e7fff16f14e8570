import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.augmentation import rand_augment as ra
from invnext_jax.training import mesh as mesh_lib

CLIPS = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8, 3), np.uint8)
augment = jax.jit(ra.rand_augment, static_argnums=2)


def test_operations_of_zero_strength_change_nothing():
    changed = {"auto_contrast", "equalize", "invert", "posterize"}
    dull = np.random.default_rng(1).integers(40, 168, (1, 40, 40, 3), np.uint8)
    for name, operation in ra.OPERATIONS.items():
        got = operation(jnp.asarray(dull), jnp.float32(0), jnp.float32(1))
        assert np.array_equal(got, dull) == (name not in changed), name


@pytest.mark.parametrize(
    "name", sorted(set(ra.OPERATIONS) - {"auto_contrast", "invert", "equalize"})
)
def test_larger_magnitude_is_a_stronger_change(name):
    slope = np.arange(8, 248, 4)
    frame = np.stack(np.broadcast_arrays(slope[:, None], slope[None], slope[None]), axis=-1)
    noise = np.random.default_rng(0).integers(-4, 5, frame.shape)
    video = (frame + noise).astype(np.uint8)[None]
    apply = jax.jit(ra.OPERATIONS[name])
    changed = [apply(video, jnp.float32(level), jnp.float32(1)) for level in (0.2, 0.6, 1.0)]
    change = [np.mean(np.abs(np.asarray(x, int) - video)) for x in changed]
    assert change[0] < change[1] < change[2], change


def test_share_of_unchanged_clips():
    """Each of two operations is applied with probability 0.5, so 1/4 of the clips do not change."""
    keys = np.concatenate([augment(jax.random.key(i), CLIPS, ra.RandAugment()) for i in range(8)])
    same = np.mean((keys == np.tile(CLIPS, (8, 1, 1, 1, 1))).all((1, 2, 3, 4)))
    assert 0.17 < same < 0.34  # some operations do not change some clips


def test_frames_of_a_clip_get_the_same_operations():
    video = np.repeat(CLIPS[:16], 3, axis=1)
    got = np.asarray(augment(jax.random.key(0), video, ra.RandAugment(probability=1.0)))
    assert (got != video).any((1, 2, 3, 4)).mean() > 0.8
    np.testing.assert_array_equal(got[:, 0], got[:, 1])
    np.testing.assert_array_equal(got[:, 0], got[:, 2])


def test_no_operations_is_the_identity():
    got = ra.rand_augment(jax.random.key(0), CLIPS, ra.RandAugment(operations=0))
    np.testing.assert_array_equal(got, CLIPS)


def test_a_magnitude_above_10_is_refused():
    with pytest.raises(UserError, match=r"config\.x\.magnitude=11 must be between 0 and 10"):
        ra.check_options(ra.RandAugment(magnitude=11), "config.x")


def test_number_of_devices_does_not_matter():
    sizes = {axis: 1 for axis in mesh_lib.AXES} | {"data": 8}
    mesh = mesh_lib.make_mesh(ml_collections.ConfigDict(sizes))
    one = augment(jax.random.key(3), CLIPS[:16], ra.RandAugment())
    with mesh_lib.mesh_rules(mesh):
        video = mesh_lib.shard_batch({"video": CLIPS[:16]}, mesh)["video"]
        many = jax.jit(lambda x: ra.rand_augment(jax.random.key(3), x, ra.RandAugment()))(video)
    assert len(many.sharding.device_set) == 8
    np.testing.assert_array_equal(many, one)
