"""Stage 1 with a teacher that encodes only some frames of each clip (`teacher.frames_share`)."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import stage2 as config2
from invnext_jax.errors import UserError
from invnext_jax.models.patches import normalize
from invnext_jax.objectives import masks, teacher_frames
from invnext_jax.planning import collectives, program
from invnext_jax.stages import image_teacher
from invnext_jax.stages.registry import STAGES
from invnext_jax.training import mesh as mesh_lib

stage1 = STAGES["stage1"]
KEY = jax.random.key(5)


def with_share(config, share, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    config.teacher.frames_share = share
    return config


@pytest.mark.parametrize(("share", "mask"), [(0.5, "semantic"), (0.25, "multi_block")])
def test_mean_over_all_choices_of_frames_is_the_loss_of_all_frames(
    share, mask, first, batch, monkeypatch
):
    config, model, params, frozen = first
    # The first frames of this multi-block mask have all visible patches.
    config = with_share(config, share, mask__kind=mask, mask__fit="cut")
    video_bthwc = normalize(batch["video"])
    all_frames = with_share(config, 1.0)

    @jax.jit
    def terms_of_all(params, frozen):
        target, samples = stage1.apply_teacher(all_frames, frozen, video_bthwc, KEY)
        terms = stage1.loss_terms(config, model, params, target, video_bthwc, samples)
        return samples, terms

    samples, expected = terms_of_all(params, frozen)
    t = config.data.frames

    @jax.jit
    def terms_of_choice(params, frozen, frames_bf):
        monkeypatch.setattr(teacher_frames, "sample_frames", lambda *_: frames_bf)
        target, _ = image_teacher.apply_to_clips(config, frozen["teacher"], video_bthwc, KEY)
        return stage1.loss_terms(config, model, params, target, video_bthwc, samples)

    choices = itertools.combinations(range(t), round(share * t))
    found = [terms_of_choice(params, frozen, jnp.array([choice] * 3)) for choice in choices]
    for name in ("align_tokens", "align_pooled"):
        values = np.array([terms[name] for terms in found])
        assert np.std(values) > 1e-4 * expected[name]
        np.testing.assert_allclose(np.mean(values), expected[name], rtol=1e-5)


def test_all_frames_give_the_default_bitwise(first, batch):
    config, model, params, frozen = first
    without = config.copy_and_resolve_references()
    run = [
        jax.jit(functools.partial(stage1.loss_fn, c, model))
        for c in (without, with_share(config, 1.0), with_share(config, 0.9))  # 3.6 frames of 4
    ]
    found = [loss_fn(params, frozen, batch, KEY) for loss_fn in run]
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


def test_encoded_frames_have_their_own_features_and_attention(first, batch):
    config, _, _, frozen = first
    video_bthwc = normalize(jnp.asarray(batch["video"]))
    full, attention_bts = image_teacher.apply_to_clips(config, frozen["teacher"], video_bthwc, KEY)
    half = with_share(config, 0.5)
    output, found_bts = image_teacher.apply_to_clips(half, frozen["teacher"], video_bthwc, KEY)
    taps_lbtsd = np.reshape(full.taps_lbnd, (2, 3, 4, 16, 32))
    for b, frames in enumerate(output.frames_bf):
        rows = slice(2 * b, 2 * b + 2)
        np.testing.assert_allclose(
            output.taps_lbnd[:, rows], taps_lbtsd[:, b, frames], rtol=1e-4, atol=1e-5
        )
        nearest = [int(frames[np.argmin(np.abs(frames - t))]) for t in range(4)]
        np.testing.assert_allclose(found_bts[b], attention_bts[b, np.array(nearest)], rtol=1e-4)
    other = image_teacher.apply_to_clips(
        half, frozen["teacher"], video_bthwc, jax.random.fold_in(KEY, 1)
    )
    assert np.any(other[0].frames_bf != output.frames_bf)


def test_masks_of_encoded_frames_are_those_of_the_full_teacher(first, batch):
    config, _, _, frozen = first
    half = with_share(config, 0.5)
    video_bthwc = normalize(jnp.asarray(batch["video"]))
    output, (sample,) = stage1.apply_teacher(half, frozen, video_bthwc, KEY)
    _, (expected,) = stage1.apply_teacher(config, frozen, video_bthwc, KEY)
    keep_btk, expected_btk = (x.keep_bk.reshape(3, 4, -1) for x in (sample, expected))
    for b, frames in enumerate(output.frames_bf):
        np.testing.assert_array_equal(keep_btk[b, frames], expected_btk[b, frames])
    np.testing.assert_array_equal(
        stage1.sample_visible(half, frozen, batch["video"], KEY)[0], sample.keep_bk
    )


def test_step_is_compiled_once_and_encodes_only_the_chosen_frames(first, batch, monkeypatch):
    config, model, params, frozen = first
    half, shapes = with_share(config, 0.5), []
    apply = image_teacher.apply_to_frames

    def record(config, params, video_bthwc):
        shapes.append(video_bthwc.shape)
        return apply(config, params, video_bthwc)

    monkeypatch.setattr(image_teacher, "apply_to_frames", record)
    run = jax.jit(functools.partial(stage1.loss_fn, half, model))
    losses = [run(params, frozen, batch, jax.random.key(i))[0] for i in range(4)]
    assert shapes == [(3, 2, 32, 32, 3)]
    assert len(set(map(float, losses))) == 4


def test_two_devices_give_the_loss_and_gradients_of_one(first, batch):
    config, model, params, frozen = first
    half = ml_collections.FrozenConfigDict(with_share(config, 0.5))
    video = np.concatenate([batch["video"], batch["video"][:1, ::-1]])  # four clips

    def loss_fn(params, frozen, batch, key):
        return stage1.loss_fn(half, model, params, frozen, batch, key)[0]

    found = []
    for count in (1, 2):
        mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:count])
        replicated = mesh_lib.replicated(mesh)
        *trees, key = jax.device_put((params, frozen, KEY), replicated)
        arguments = *trees, mesh_lib.shard_batch({"video": video}, mesh), key
        with mesh_lib.mesh_rules(mesh):
            run = jax.jit(jax.value_and_grad(loss_fn), out_shardings=replicated)
            compiled = run.lower(*arguments).compile()
        found.append(jax.device_get(compiled(*arguments)))
        sent = collectives.read_collectives(program.read_program(compiled.as_text()), count)
        assert {c.kind for c in sent} == ({"all-reduce"} if count > 1 else set())
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in found]
    assert np.linalg.norm(flat[1] - flat[0]) <= 1e-5 * np.linalg.norm(flat[0])


@pytest.mark.parametrize(
    ("share", "sentence"),
    [
        (0.0, "teacher.frames_share=0.0 must be above 0 and at most 1"),
        (1.5, "teacher.frames_share=1.5 must be above 0 and at most 1"),
        (0.1, "frames_share=0.1 of data.frames=4 is less than one frame: set it to at least 0.25"),
    ],
)
def test_impossible_shares_are_refused(share, sentence, first):
    with pytest.raises(UserError) as caught:
        stage1.check_config(with_share(first[0], share))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_image_target_of_stage2_needs_all_frames():
    config = config2.get_config("tiny")
    config.init_from, config.target.kind = "runs/stage1", "image"
    STAGES["stage2"].check_config(config)
    with pytest.raises(UserError, match=r"frames_share=0.5 must be 1 with target.kind='image'"):
        STAGES["stage2"].check_config(with_share(config, 0.5))
    config.target.kind, config.mask.kind = "frozen", "semantic"
    STAGES["stage2"].check_config(with_share(config, 0.5))
    assert masks.needs_attention(config.mask)
