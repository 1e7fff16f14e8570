"""Which patches the predictor gets and predicts."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.objectives import prediction_task


def test_predicted_positions_are_uniform_and_distinct():
    masked_bm = jnp.tile(jnp.arange(5, 25)[None], (4000, 1))
    chosen = np.asarray(prediction_task.sample_predicted(jax.random.key(0), masked_bm, 0.3))
    assert chosen.shape == (4000, prediction_task.predicted_count(20, 0.3)) == (4000, 6)
    assert (np.diff(chosen, axis=1) > 0).all()  # distinct and ascending
    frequency = np.bincount(chosen.ravel(), minlength=20) / 4000
    np.testing.assert_allclose(frequency, 0.3, atol=4 * (0.3 * 0.7 / 4000) ** 0.5)
    everything = prediction_task.sample_predicted(jax.random.key(0), masked_bm[:2], 1.0)
    np.testing.assert_array_equal(everything, np.tile(np.arange(20), (2, 1)))
    assert prediction_task.predicted_count(20, 0.01) == 1  # never none


@pytest.mark.parametrize("frames", [1, 3])
def test_context_frames_are_uniform_and_complete(frames):
    keep_bk = jnp.tile(jnp.asarray([0, 2, 5, 6, 7, 9, 12, 13])[None], (4000, 1))  # 4 frames of 4
    seen_bk = np.asarray(
        prediction_task.sample_context(jax.random.key(0), keep_bk, (4, 2, 2), frames)
    )
    by_frame = np.split(seen_bk, [2, 5, 6], axis=1)
    for seen in by_frame:  # all visible patches of a frame, or none
        assert (seen.all(axis=1) == seen.any(axis=1)).all()
    chosen_bt = np.stack([seen.any(axis=1) for seen in by_frame], axis=1)
    assert (chosen_bt.sum(axis=1) == frames).all()
    share = frames / 4
    deviation = (share * (1 - share) / 4000) ** 0.5
    np.testing.assert_allclose(chosen_bt.mean(axis=0), share, atol=4 * deviation)


def test_context_frames_have_visible_patches():
    keep_bk = jnp.tile(jnp.asarray([4, 5, 13])[None], (100, 1))  # frames 1 and 3 of 4
    one, all_of_them = (
        np.asarray(prediction_task.sample_context(jax.random.key(1), keep_bk, (4, 2, 2), frames))
        for frames in (1, 3)
    )
    assert set(one.sum(axis=1)) == {1, 2}
    assert all_of_them.all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("predicted", 0.0, "config.mask.predicted=0.0, the fraction of predicted patches"),
        ("context_frames", 9, "must be 0 (all frames) or at most config.data.frames=8"),
        ("context_frames", -1, "config.mask.context_frames=-1 must be 0"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    settings = ml_collections.ConfigDict({"predicted": 1.0, "context_frames": 0, field: value})
    with pytest.raises(UserError) as error:
        prediction_task.check_settings(settings, frames=8)
    assert message in str(error.value)
