"""Masks: fixed lengths, every position once, and the statistics of multi-block masks."""

from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from invnext_jax.errors import UserError
from invnext_jax.objectives import masks

GRID = (4, 16, 16)
SETTINGS = common.defaults().mask


def draw(kind, batch=64):
    key = jax.random.key(0)
    if kind == "semantic":
        attention = jax.random.uniform(key, (batch, 4, 256), minval=0.01)
        return masks.semantic_masks(key, batch, GRID, SETTINGS, attention)[0]
    if kind in ("tube", "random"):
        return masks.REGISTRY[kind].sample(key, batch, GRID, SETTINGS, None)[0]
    return masks.multi_block_masks(key, batch, GRID, SETTINGS)[int(kind[-1])]


@pytest.mark.parametrize("kind", ["semantic", "random", "tube", "block0", "block1"])
def test_each_position_is_either_kept_or_masked_in_raster_order(kind):
    keep_bk, masked_bm = map(np.asarray, draw(kind))
    both = np.sort(np.concatenate([keep_bk, masked_bm], axis=1), axis=1)
    assert (both == np.arange(4 * 256)).all()
    assert (np.diff(keep_bk, axis=1) > 0).all() and (np.diff(masked_bm, axis=1) > 0).all()
    visible = np.stack([np.bincount(row // 256, minlength=4) for row in keep_bk])
    assert (visible == visible[0, 0]).all()  # all frames have the same number of visible patches


@pytest.mark.parametrize(("kind", "same"), [("tube", True), ("block1", True), ("random", False)])
def test_tube_and_multi_block_masks_are_the_same_in_all_frames(kind, same):
    keep_bk = np.asarray(draw(kind)[0])
    position_btk = (keep_bk % 256).reshape(len(keep_bk), 4, -1)
    assert (position_btk == position_btk[:, :1]).all() == same


def draw_unscaled_blocks(rng, count, share, aspect):
    """Returns the visible positions [16, 16] outside unscaled blocks, independently of masks.py."""
    ratio = rng.uniform(*aspect)
    h = min(16, round(np.sqrt(share * 256 * ratio)))
    w = min(16, round(np.sqrt(share * 256 / ratio)))
    visible = np.ones((16, 16), bool)
    for _ in range(count):
        y, x = rng.integers(0, 16 - h + 1), rng.integers(0, 16 - w + 1)
        visible[y : y + h, x : x + w] = False
    return visible


def test_default_visible_shares_are_the_means_of_unscaled_blocks():
    rng = np.random.default_rng(0)
    for (count, share), visible in zip(SETTINGS.blocks, SETTINGS.visible, strict=True):
        shares = [
            draw_unscaled_blocks(rng, count, share, SETTINGS.aspect).mean() for _ in range(4000)
        ]
        np.testing.assert_allclose(np.mean(shares), visible, atol=0.02)


@pytest.mark.parametrize("fit", ["scale", "cut"])
@pytest.mark.parametrize(("keep", "first"), [(0.5, 2), (0.75, 3), (0.01, 1)])
def test_later_frames_can_be_masked_completely(fit, keep, first):
    settings = common.defaults().mask
    settings.update(kind="multi_block", fit=fit, max_temporal_keep=keep)
    assert masks.visible_frames(settings, 4) == first
    key = jax.random.key(0)
    for i, (keep_bk, masked_bm) in enumerate(masks.multi_block_masks(key, 8, GRID, settings)):
        settings.max_temporal_keep = 1.0
        all_frames = masks.multi_block_masks(key, 8, (first, 16, 16), settings)
        settings.max_temporal_keep = keep
        np.testing.assert_array_equal(keep_bk, all_frames[i][0])  # the mask of a shorter clip
        both = np.sort(np.concatenate([keep_bk, masked_bm], axis=1), axis=1)
        assert (both == np.arange(4 * 256)).all() and np.max(keep_bk) < first * 256
        assert (np.diff(masked_bm, axis=1) > 0).all()


def test_multi_block_masks_every_position_and_favors_the_center():
    # Blocks inside the frame cover its center most; scaling them preserves that distribution.
    rng = np.random.default_rng(1)
    for kind, (count, share) in enumerate(SETTINGS.blocks):
        keep_bk = np.asarray(draw(f"block{kind}", batch=2000)[0])
        counts = np.bincount(keep_bk.ravel() % 256, minlength=256).reshape(16, 16)
        visible_share = counts / (4 * 2000)
        drawn = np.mean(
            [draw_unscaled_blocks(rng, count, share, SETTINGS.aspect) for _ in range(2000)], axis=0
        )
        assert visible_share.max() < 1.0 and visible_share[0, 0] > visible_share[8, 8]
        assert np.corrcoef(visible_share.ravel(), drawn.ravel())[0, 1] > 0.95


def test_multi_block_masks_are_contiguous():
    # A masked position in a block mostly has masked neighbors, unlike one of a random mask.
    def neighbors(keep_bk):
        masked = np.ones((len(keep_bk), 256), bool)
        positions = np.asarray(keep_bk)[:, : keep_bk.shape[1] // 4]
        np.put_along_axis(masked, positions, False, axis=1)
        masked = masked.reshape(-1, 16, 16)
        right = masked[:, :, 1:][masked[:, :, :-1]].mean()
        return (right - masked.mean()) / (1 - masked.mean())

    assert neighbors(draw("block0")[0]) > 0.5
    assert abs(neighbors(draw("random")[0])) < 0.05


def test_visible_count_follows_the_reference():
    assert masks.visible_per_frame(256, 0.75) == 64
    assert masks.visible_per_frame(256, 0.8) == 256 - 204
    assert masks.visible_per_frame(9, 0.75) == 3


def test_exact_fractions_give_their_number_of_patches():
    # Products such as 0.57 * 100 = 56.99999999999999 are below the exact number.
    for positions in (49, 100, 196, 256):
        for n in range(1, 100):
            exact = Fraction(n, 100) * positions
            assert masks.count_patches(n / 100, positions) == exact.numerator // exact.denominator
    assert masks.visible_per_frame(100, 0.57) == 43
    settings = SimpleNamespace(
        kind="multi_block",
        **{"blocks": ((2, 0.1),), "visible": (0.57,), "aspect": (1.0, 1.0), "fit": "scale"},
        max_temporal_keep=1.0,
    )
    [(keep_bk, _)] = masks.multi_block_masks(jax.random.key(0), 1, (1, 10, 10), settings)
    assert keep_bk.shape == (1, 57)


def test_semantic_mask_prefers_attention():
    attention = jnp.ones((500, 2, 16)).at[:, :, 3].set(50.0)
    settings = SimpleNamespace(ratio=0.75)  # 4 of 16 patches stay visible
    [(keep_bk, _)] = masks.semantic_masks(jax.random.key(0), 500, (2, 4, 4), settings, attention)
    counts = np.bincount(np.asarray(keep_bk).ravel() % 16, minlength=16) / 1000
    assert counts[3] > 0.98


# Counted by running the reference's mask generator with batch 1: frames, its cap on visible tokens,
# and the share of frames without a visible token. Two blocks rarely leave as many tokens.
@pytest.mark.parametrize(("frames", "tokens", "empty"), [(8, 400, 0.405), (16, 800, 0.436)])
def test_cut_masks_leave_the_last_frames_empty_as_in_the_reference(frames, tokens, empty):
    count, share = SETTINGS.blocks[0]
    keep_bk, masked_bm = masks.multi_block_mask(
        jax.random.key(0),
        2000,
        (frames, 16, 16),
        blocks=count,
        share=share,
        aspect=SETTINGS.aspect,
        visible=tokens // frames,
        fit="cut",
    )
    both = np.sort(np.concatenate([keep_bk, masked_bm], axis=1), axis=1)
    assert keep_bk.shape[1] == tokens and (both == np.arange(frames * 256)).all()
    visible = np.stack([np.bincount(row // 256, minlength=frames) for row in np.asarray(keep_bk)])
    np.testing.assert_allclose((visible == 0).mean(), empty, atol=0.015)
    last = np.argmax(visible == 0, axis=1)  # no visible token follows the first empty frame
    assert all((row[i:] == 0).all() for row, i in zip(visible, last, strict=True) if i)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ratio", 0.0, "config.mask.ratio=0.0 must be between 0 and 1"),
        ("ratio", 1.0, "config.mask.ratio=1.0 must be between 0 and 1"),
        ("ratio", 1.5, "config.mask.ratio=1.5 must be between 0 and 1"),
        ("ratio", 0.001, "mask.ratio=0.001 masks none of a frame's 256 patches"),
        (
            "kind",
            "tubes",
            "mask.kind='tubes' must be one of 'semantic', 'multi_block', 'tube', 'rand",
        ),
        ("fit", "crop", "mask.fit='crop' must be one of 'scale', 'cut'"),
        ("max_temporal_keep", 0.0, "config.mask.max_temporal_keep=0.0 must be above 0 and at"),
        ("max_temporal_keep", 1.5, "config.mask.max_temporal_keep=1.5 must be above 0"),
    ],
)
def test_invalid_settings_are_refused(field, value, message):
    settings = common.defaults().mask
    if field in masks.REGISTRY["multi_block"].options:
        settings.kind = "multi_block"
    masks.check_settings(settings, 256)
    settings[field] = value
    with pytest.raises(UserError) as caught:
        masks.check_settings(settings, 256)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blocks", ()),
        ("blocks", ((8, 15.0), (2, 70.0))),
        ("blocks", ((0, 0.15), (2, 0.7))),
        ("blocks", ((8, 0.15),)),
        ("visible", (0.38,)),
        ("visible", (38.0, 19.0)),
        ("visible", (1.0, 0.19)),
        ("aspect", (1.5, 0.75)),
        ("aspect", (0.0, 1.5)),
    ],
)
def test_impossible_blocks_are_refused(field, value):
    settings = common.defaults().mask
    settings.kind = "multi_block"
    masks.check_settings(settings, 256)
    settings[field] = value
    with pytest.raises(UserError, match="config.mask.(blocks|visible|aspect)=.* must "):
        masks.check_settings(settings, 256)


def test_registered_mask_is_sampled_by_name(monkeypatch):
    monkeypatch.setattr(masks, "REGISTRY", dict(masks.REGISTRY))

    @masks.register_mask("first_frame", needs_attention=True, options=())
    def first_frame_masks(key, batch, grid, settings, attention_bts):
        del key, settings, attention_bts
        index_1n = jnp.arange(np.prod(grid))[None]
        kept = grid[1] * grid[2]
        return [(index_1n[:, :kept].repeat(batch, 0), index_1n[:, kept:].repeat(batch, 0))]

    settings = common.defaults().mask
    settings.kind = "first_frame"
    masks.check_settings(settings, 256)
    assert masks.needs_attention(settings)
    [(keep_bk, masked_bm)] = masks.sample_masks(jax.random.key(0), 2, GRID, settings)
    assert keep_bk.shape == (2, 256) and masked_bm.shape == (2, 3 * 256)
