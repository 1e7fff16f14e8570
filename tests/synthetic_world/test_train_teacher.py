import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import stage1 as stage1_config
from configs import teacher as teacher_config
from invnext_jax.data import decode
from invnext_jax.errors import UserError
from invnext_jax.models import patches, teachers
from invnext_jax.models.text_tower import TextTower
from invnext_jax.monitoring import metrics_file
from invnext_jax.stages.registry import STAGES
from invnext_jax.synthetic_world import teacher_evaluation, tokenizer, train_teacher
from invnext_jax.synthetic_world.captions import Caption, all_image_captions
from invnext_jax.synthetic_world.files import encode_mp4
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.weights import export

stage1 = STAGES["stage1"]

HELD_OUT_CLIPS = 32  # clips of 8 frames


def test_every_image_matches_its_own_caption_and_all_that_are_true_of_it():
    frames = train_teacher.make_frames(WorldSpec(), 40)
    captions = all_image_captions("simple")
    tokens_jn = tokenizer.tokenize(captions, tokenizer.build_vocabulary(captions), 8)
    text = {caption.text: row for caption, row in zip(captions, tokens_jn, strict=True)}
    batch = train_teacher.sample_batch(np.random.default_rng(0), frames, "simple", 64, text)
    assert batch["labels"].diagonal().all()
    assert batch["labels"].sum() > 64  # captions of other images match, too
    by_tokens = {row.tobytes(): caption for caption, row in zip(captions, tokens_jn, strict=True)}
    drawn = [by_tokens[row.tobytes()] for row in batch["words"]]
    clip_of = {image.tobytes(): b for b, clip in enumerate(frames.video_bthwc) for image in clip}
    for row, image in enumerate(batch["images"]):
        clip = clip_of[image.tobytes()]
        for column, caption in enumerate(drawn):
            is_true = all(frames.labels[k][clip] == v for k, v in caption.attributes.items())
            assert batch["labels"][row, column] == is_true


def test_text_tower_depends_on_every_word():
    tower = TextTower(words=9, length=4, width=16, depth=1, heads=2, mlp_width=16, out_width=8)
    words_jn = jnp.array([[1, 2, 3, 4], [5, 2, 3, 4], [1, 2, 4, 3]])
    params = tower.init(jax.random.key(0), words_jn)
    text_jd = tower.apply(params, words_jn)
    np.testing.assert_allclose(jnp.linalg.norm(text_jd, axis=1), 1, rtol=1e-5)
    # Initial features of all captions are similar, but the differences exceed rounding errors.
    assert jnp.abs(text_jd[0] - text_jd[1]).max() > 1e-4
    assert jnp.abs(text_jd[0] - text_jd[2]).max() > 1e-5


def test_class_embedding_is_the_mean_of_the_captions_that_mention_only_it():
    captions = [
        Caption("a disc", {"shape": 0}),
        Caption("disc", {"shape": 0}),
        Caption("a red disc", {"shape": 0, "color": 0}),
        Caption("a ring", {"shape": 1}),
    ]
    text_jd = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    classes = {"shape": ("disc", "ring"), "color": ("red",)}
    embeddings = teacher_evaluation.class_embeddings(captions, text_jd, classes)
    assert embeddings.keys() == {"shape"}
    np.testing.assert_allclose(embeddings["shape"], [[0.5**0.5, 0.5**0.5], [0, -1]], atol=1e-6)


def tiny_config(**changes):
    config = teacher_config.get_config("tiny")
    config.update(total_steps=40, batch_size=32, **changes)
    config.data.update(clips=64, val_clips=4)
    config.teacher.update(width=32, depth=1, heads=2, mlp_width=32, taps=1)
    config.text.update(width=32, depth=1, heads=2, mlp_width=32)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=5)
    config.log.every_steps = 1
    return config


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    return workdir, train_teacher.train(tiny_config(), workdir)


def test_a_few_steps_lower_the_loss(short_run):
    losses = [record["loss"] for record in metrics_file.read_metrics(short_run[0])]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_run_writes_the_vision_tower_and_what_was_measured(short_run):
    workdir, measured = short_run
    parts, about = export.open_export(workdir / train_teacher.WEIGHTS_FILE)
    parts = jax.tree.map(np.asarray, parts)
    assert parts.keys() == {"teacher", "prompts"}
    assert about["measured"] == measured
    assert about["config"]["total_steps"] == 40
    assert parts["prompts"]["shape"].shape == (8, 32)
    vision = teachers.from_config(ml_collections.FrozenConfigDict(about["config"]))
    frames = train_teacher.make_frames(WorldSpec(split="val"), 4)
    again = teacher_evaluation.evaluate(vision, parts["teacher"], frames, parts["prompts"])
    assert again == pytest.approx(measured, rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="config.batch_size=30 must be divisible"):
        config = tiny_config()
        config.batch_size = 30
        train_teacher.train(config, tmp_path)


def test_initial_weights_are_refused(tmp_path):
    config = tiny_config()
    config.teacher.weights = "assets"
    with pytest.raises(UserError, match="teacher.weights='assets' is not used"):
        train_teacher.train(config, tmp_path)


@pytest.fixture(scope="module")
def shipped():
    """The tower, its parameters, the prompts and the documented scores, as Stage 1 loads them."""
    config = ml_collections.FrozenConfigDict(stage1_config.get_config("tiny"))
    parts, about = export.open_export(export.resolve_path("assets"))
    frozen = stage1.init_frozen(config, None)
    prompts = jax.tree.map(np.asarray, parts["prompts"])
    return teachers.from_config(config), frozen["teacher"], prompts, about["measured"]


def held_out(*, compressed):
    frames = train_teacher.make_frames(WorldSpec(split="test"), HELD_OUT_CLIPS)
    if not compressed:
        return frames
    take_all = functools.partial(np.arange, dtype=int)
    videos = [decode.read_frames(encode_mp4(v), take_all) for v in frames.video_bthwc]
    return frames._replace(video_bthwc=np.stack(videos))


@pytest.mark.parametrize("compressed", [False, True])
def test_shipped_teacher_reaches_its_zero_shot_accuracies(shipped, compressed):
    vision, params, prompts, claims = shipped
    found = teacher_evaluation.evaluate(vision, params, held_out(compressed=compressed), prompts)
    for task in ("shape", "color"):
        claimed = claims[f"zero_shot/{task}"]
        # The frames of a clip are similar, so the sample size is the number of clips. One clip may
        # be an outlier.
        error = 100 * math.sqrt(claimed / 100 * (1 - claimed / 100) / HELD_OUT_CLIPS)
        assert abs(found[f"zero_shot/{task}"] - claimed) <= 3 * error + 1


def test_shipped_teacher_attends_to_the_object(shipped):
    vision, params, prompts, claims = shipped
    found = teacher_evaluation.evaluate(vision, params, held_out(compressed=True), prompts)
    assert found["attention/object"] > 1.5 * found["attention/object_area"]
    assert found["attention/object"] == pytest.approx(claims["attention/object"], abs=0.1)


def test_shipped_teacher_is_small():
    assert sum(p.stat().st_size for p in export.ASSETS.glob("siglip2_*")) < 3e6


def test_teacher_learns_from_the_images_that_stage_1_shows_it():
    video_bthwc = train_teacher.make_frames(WorldSpec(), 1).video_bthwc
    shown = teachers.preprocess(patches.normalize(video_bthwc), 32, "siglip2")
    np.testing.assert_allclose(shown, teacher_evaluation.normalize(video_bthwc[0]), atol=1e-5)
