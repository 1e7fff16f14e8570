"""Positions and sizes of V-JEPA 2 and VideoMAE; test_parity_video.py compares with transformers."""

import jax
import numpy as np
import pytest
from golden_cases import assert_near

from invnext_jax.models import tubelet_encoder
from invnext_jax.models.positions import apply_axial_rotary, interleaved_sincos_table

SIZES = {
    **{"width": 12, "depth": 2, "heads": 1, "mlp_width": 16, "patch": 4, "tubelet": 2},
    **{"train_size": 8, "frames": 4, "eps": 1e-6, "final_norm": True, "pool_norm": False},
}


def test_rotation_of_a_wide_grid_is_a_part_of_that_of_a_square_grid():
    x_bnhe = np.random.default_rng(0).normal(size=(2, 3 * 4 * 4, 2, 20)).astype(np.float32)
    square = np.asarray(apply_axial_rotary(x_bnhe, (3, 4, 4))).reshape(2, 3, 4, 4, 2, 20)
    part = x_bnhe.reshape(2, 3, 4, 4, 2, 20)[:, :2, :1].reshape(2, 8, 2, 20)
    found = apply_axial_rotary(part, (2, 1, 4))
    assert_near(found, square[:, :2, :1].reshape(2, 8, 2, 20), 1e-6)


@pytest.mark.parametrize("head_width", [3, 5])
def test_narrow_heads_are_not_rotated(head_width):
    x_bnhe = np.ones((1, 8, 1, head_width), np.float32)
    np.testing.assert_array_equal(apply_axial_rotary(x_bnhe, (2, 2, 2)), x_bnhe)


def test_interleaved_table_has_the_values_of_the_formula():
    table_nd = interleaved_sincos_table(4, 3)
    expected = [[np.sin(n), np.cos(n), np.sin(n / 100), np.cos(n / 100)] for n in range(3)]
    assert_near(table_nd, np.array(expected), 1e-6)


@pytest.mark.parametrize("kind", ["vjepa2", "videomae"])
def test_a_time_slot_sees_only_its_own_frames_in_the_patch_embedding(kind):
    module = tubelet_encoder.from_sizes({"kind": kind, **SIZES}, taps=(0,))
    clips = np.random.default_rng(0).normal(size=(1, 4, 8, 12, 3)).astype(np.float32)
    params = module.init(jax.random.key(0), clips)
    changed = clips.copy()
    changed[:, 3, :, 8:] += 1
    states = [np.asarray(module.apply(params, x).taps_lbnd[0, 0]) for x in (clips, changed)]
    differs = np.any(states[0] != states[1], axis=-1).reshape(2, 2, 3)
    assert differs.tolist() == [[[False] * 3] * 2, [[False, False, True]] * 2]
