import tracemalloc

import numpy as np
import pytest
import truth_layouts
from PIL import Image

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import masks
from invnext_jax.evaluation.truth.masks import DavisMasks
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.synthetic_world.render import render_clip


@pytest.fixture
def davis(tmp_path):
    return truth_layouts.write_davis(tmp_path)


def annotation(davis, frame):
    return davis / "Annotations" / "480p" / "sequence-0" / f"{frame:05d}.png"


def test_ids_are_those_of_the_palette(davis):
    truth = DavisMasks(davis)
    assert truth.sequences == ["sequence-0", "sequence-1"]
    for row in range(2):
        found, clip = truth.load(row), render_clip(truth_layouts.SPEC, row)
        np.testing.assert_array_equal(found["video"], clip.video)
        np.testing.assert_array_equal(found["ids"], clip.ids)
        expected = sorted(set(clip.ids[0].ravel().tolist()) - {0})
        assert masks.list_objects(found["ids"]) == expected


def test_frames_can_be_limited_and_resized(davis):
    found, clip = (
        DavisMasks(davis, size=16, max_frames=5).load(0),
        render_clip(truth_layouts.SPEC, 0),
    )
    assert found["video"].shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(found["ids"], clip.ids[:5, 1::2, 1::2])


def test_large_annotations_are_cropped_one_by_one(davis):
    expected = DavisMasks(davis, size=16).load(0)["ids"]
    for path in (davis / "Annotations/480p/sequence-0").iterdir():
        with Image.open(path) as image:
            palette, size = image.getpalette(), (64 * image.width, 64 * image.height)
            large = image.resize(size, Image.Resampling.NEAREST)
        large.putpalette(palette)
        large.save(path)
    tracemalloc.start()
    found = DavisMasks(davis, size=16).load(0)["ids"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert peak < 10 * size[0] * size[1]  # bytes; the annotations of all frames have 20


def test_void_pixels_are_background(davis):
    ids = np.zeros((32, 32), np.uint8)
    ids[:4], ids[4:8] = masks.VOID, 1
    for frame in range(20):
        Image.fromarray(ids).save(annotation(davis, frame))
    found = DavisMasks(davis).load(0)["ids"]
    assert set(np.unique(found)) == {0, 1}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing"),
        (b"broken", "truncated"),
        (Image.new("RGB", (32, 32)), "wrong format"),
        (Image.new("P", (16, 32)), "wrong format"),
    ],
)
def test_damaged_annotations_are_bad_rows(davis, content, kind):
    path = annotation(davis, 3)
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.save(path)
    truth = DavisMasks(davis)
    with pytest.raises(BadTruth) as caught:
        truth.load(0)
    assert caught.value.kind == kind
    truth.load(1)


def test_sequences_without_objects_are_bad_rows(davis):
    Image.new("P", (32, 32)).save(annotation(davis, 0))
    with pytest.raises(BadTruth, match="no object in its first frame"):
        DavisMasks(davis).load(0)


def test_images_that_are_no_ids_are_bad_rows(davis):
    with Image.open(annotation(davis, 0)) as image:
        size = image.size
    gray = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1])
    Image.fromarray(gray).save(annotation(davis, 0))
    with pytest.raises(BadTruth, match="254 objects in its first frame, more than 64"):
        DavisMasks(davis).load(0)


def test_a_wrong_layout_is_one_sentence(davis, tmp_path):
    with pytest.raises(UserError, match="test-dev.txt cannot be read"):
        DavisMasks(davis, "test-dev")
    with (davis / "ImageSets" / "2017" / "val.txt").open("a") as file:
        file.write("\nhorse\n")
    with pytest.raises(UserError, match="horse does not exist"):
        DavisMasks(davis)
    with pytest.raises(UserError, match="does not exist"):
        DavisMasks(davis, resolution="/".join(["a" * 200] * 30))
