import re

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import captions as captions_lib
from invnext_jax.synthetic_world import spec as spec_lib

MOTION_WORDS = re.compile(r"\b(moves?|comes|goes|left|right|up|down|closer|away|then)\b")


@pytest.mark.parametrize("level", spec_lib.LEVELS)
def test_image_captions_do_not_mention_motion(level):
    captions = captions_lib.all_image_captions(level)
    assert not any(MOTION_WORDS.search(caption.text) for caption in captions)
    assert not any({"motion", "verb"} & set(caption.attributes) for caption in captions)
    assert len({caption.text for caption in captions}) == len(captions)


@pytest.mark.parametrize("level", spec_lib.LEVELS)
def test_attributes_are_exactly_the_class_names_in_the_text(level):
    classes = spec_lib.WorldSpec(level=level).classes
    for caption in captions_lib.all_image_captions(level):
        words = caption.text.split()
        named = {t: i for t in classes for i, n in enumerate(classes[t]) if n in words}
        assert named == caption.attributes


@pytest.mark.parametrize("level", spec_lib.LEVELS)
def test_captions_of_a_clip_match_it_and_are_listed(level):
    listed = {caption.text for caption in captions_lib.all_image_captions(level)}
    classes = spec_lib.WorldSpec(level=level).classes
    labels = {task: np.array([len(names) - 1]) for task, names in classes.items()}
    own = {task: int(value[0]) for task, value in labels.items()}
    captions = captions_lib.image_captions(level, own)
    assert {caption.text for caption in captions} <= listed
    assert captions_lib.label_matrix(labels, captions).all()
    video = captions_lib.video_caption(level, own)
    own.pop("action", None)  # the action consists of the verb and the noun
    assert video.attributes == own
    assert MOTION_WORDS.search(video.text)


def test_text_of_video_captions():
    labels = {"shape": 6, "color": 0, "motion": 3}
    assert (
        captions_lib.video_caption("simple", labels).text == "a red hourglass moves down and left"
    )
    labels = {"shape": 3, "color": 4, "motion": 4, "background": 2}
    assert (
        captions_lib.video_caption("full", labels).text
        == "a magenta three comes closer on a cloudy background"
    )
    labels = {"verb": 7, "noun": 1, "action": 57}
    text = captions_lib.video_caption("anticipation", labels).text
    assert text == "a ring that finally moves up and right"


def test_label_matrix_is_true_where_all_mentioned_attributes_match():
    captions = [
        captions_lib.Caption("a disc", {"shape": 0}),
        captions_lib.Caption("something red", {"color": 0}),
        captions_lib.Caption("a red disc", {"shape": 0, "color": 0}),
        captions_lib.Caption("a thing", {}),
    ]
    labels = {"shape": np.array([0, 0, 1]), "color": np.array([0, 2, 0])}
    expected = [[1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 1]]
    np.testing.assert_array_equal(captions_lib.label_matrix(labels, captions), expected)


def test_labels_that_are_no_classes_are_one_sentence():
    with pytest.raises(UserError, match="the shape 99 is not a class of the level 'simple'"):
        captions_lib.image_captions("simple", {"shape": 99, "color": 0, "motion": 0})
