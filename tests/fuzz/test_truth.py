"""Damaged files of ground truth lead to bad rows or one-sentence errors, never to other errors."""

import csv
import io
import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import io as scipy_io

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import (
    boxes_jsonl,
    captions,
    epic_kitchens,
    images,
    joints,
    world,
)
from invnext_jax.evaluation.truth.truth import BadTruth

SECONDS = 20  # maximum time for one file on a busy machine
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 10**9, 1e308])
TEXTS = st.text(max_size=12) | st.sampled_from(["", "\x00", "\ud800", "../x", "a", "1", "nan"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def encode(array, palette=False):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_matrix(compressed):
    buffer = io.BytesIO()
    positions = np.random.default_rng(0).uniform(1, 60, (2, 15, 8))
    scipy_io.savemat(buffer, {"pos_img": positions}, do_compression=compressed)
    return buffer.getvalue()


def make_truth():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.ones((2, 3)) for name in world.ARRAYS})
    return buffer.getvalue()


IMAGE = np.random.default_rng(0).integers(0, 3, (24, 32))
FILES = {
    "depth": (encode(IMAGE.astype(np.uint16)), lambda path: images.read_depth(path, 1000.0)),
    "ids": (encode(IMAGE.astype(np.uint8), palette=True), images.read_ids),
    "matrix": (make_matrix(False), joints._read_joints),
    "compressed matrix": (make_matrix(True), joints._read_joints),
    "world": (make_truth(), world.read_arrays),
}


def read_or_refuse(function, *arguments):
    """Returns the result, or None if the file is refused; all other errors fail the test."""
    start = time.monotonic()
    try:
        return function(*arguments)
    except (UserError, BadTruth) as error:
        assert str(error)
        return None
    finally:
        assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_files_of_a_row(folder, kind, data):
    good, read = FILES[kind]
    content = bytearray(good)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([len(good)] * 3 + [0, 1, len(good) // 2, len(good) - 1]))
    path = folder / "file"
    path.write_bytes(bytes(content[:length]))
    read_or_refuse(read, path)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_file_of_a_row(folder, content):
    path = folder / "bytes"
    path.write_bytes(content)
    for _, read in FILES.values():
        read_or_refuse(read, path)


TRACK = st.fixed_dictionaries(
    {},
    optional={
        "frames": st.lists(NUMBERS | st.integers(0, 5), max_size=3) | JSON,
        "boxes": st.lists(st.lists(NUMBERS, min_size=4, max_size=4), max_size=3) | JSON,
    },
)
VIDEO = st.fixed_dictionaries(
    {},
    optional={
        "video": TEXTS | JSON,
        "fps": NUMBERS | JSON,
        "width": st.just(64) | JSON,
        "height": st.just(48) | JSON,
        "tracks": st.dictionaries(TEXTS, TRACK | JSON, max_size=3) | JSON,
    },
)


@given(st.lists(VIDEO | JSON, max_size=3))
def test_boxes(folder, lines):
    path = folder / "tracks.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    for tracks in read_or_refuse(boxes_jsonl.read_tracks, path) or []:
        assert np.isfinite(tracks.box_n4).all()
        assert len(tracks.box_n4) == len(tracks.frame_n) == len(tracks.object_n)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "video": st.sampled_from(["a", "b.mp4"]) | JSON,
        "caption": TEXTS | st.lists(TEXTS, max_size=3) | JSON,
        "answer": st.integers(-1, 3) | JSON,
    },
)


@given(st.lists(ENTRY | JSON, max_size=3) | JSON)
def test_captions(folder, content):
    (folder / "videos.csv").write_text("path,source\na.mp4,x\nb.mp4,x\n")
    manifest = manifest_lib.read_manifest(str(folder / "videos.csv"))
    path = folder / "captions.json"
    path.write_text(json.dumps(content))
    found = read_or_refuse(captions.read_captions, path, manifest)
    assert found is None or len(found.texts) == len(found.row_j) == len(found.group_j) > 0
    choices = read_or_refuse(captions.read_choices, path, manifest)
    if choices is not None:
        counts = [len(texts) for texts in choices.candidates]
        assert (choices.answer_b < counts).all()


CELLS = st.one_of(
    TEXTS,
    NUMBERS.map(str),
    st.sampled_from(["00:00:01.5", "1:2", "nan:0:1", "0:0:inf", "P01_01", "5", "-1"]),
)
HEADER = ["video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"]


@given(st.lists(st.lists(CELLS, max_size=6), max_size=4), st.sampled_from([None, 60.0]))
def test_annotations_of_epic_kitchens(folder, rows, fps):
    path = folder / "EPIC_100_train.csv"
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file, escapechar="\\").writerows([HEADER, *rows])
    found = read_or_refuse(epic_kitchens.read_annotations, path, fps)
    if found is not None:
        assert (found.start_b < found.stop_b).all() and len(found.videos) == len(found.verb_b)
