"""Images and lists from untrusted folders."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file
from invnext_jax.evaluation.truth import images
from invnext_jax.evaluation.truth.truth import BadTruth

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"0 0 moveto\nshowpage\n%%EOF\n"
)


def read(path):
    return images.read_image(path, lambda image: np.asarray(image.convert("RGB")))


def test_images_in_postscript_start_no_program(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "1.png").write_bytes(EPS)
    with pytest.raises(BadTruth, match="1.png cannot be decoded"):
        read(tmp_path / "1.png")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["GIF", "BMP", "TIFF", "WEBP", "ICO", "TGA"])
def test_only_png_and_jpeg_are_decoded(tmp_path, name):
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    image.save(tmp_path / "1.png", name)
    with pytest.raises(BadTruth, match="cannot be decoded"):
        read(tmp_path / "1.png")
    image.save(tmp_path / "1.png", "JPEG")
    assert read(tmp_path / "1.png").shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["PNG", "JPEG"])
def test_damaged_images_are_bad_rows(tmp_path, name):
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(32, 32, 3)).astype(np.uint8)).save(buffer, name)
    for _ in range(100):
        data = bytearray(buffer.getvalue())
        for place in rng.integers(0, min(len(data), 200), size=4):
            data[place] = rng.integers(256)
        (tmp_path / "1.png").write_bytes(data)
        try:
            read(tmp_path / "1.png")
        except BadTruth:
            pass


def test_errors_of_any_type_while_decoding_are_bad_rows(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "1.png")
    for kind in (NotImplementedError, AttributeError, RuntimeError, IndexError):
        with pytest.raises(BadTruth), images.open_image(tmp_path / "1.png"):
            raise kind("damaged")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_frames_with_too_many_pixels_are_not_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 8193, 8192, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "1.png").write_bytes(data)
    with pytest.raises(BadTruth, match="8193 x 8192 pixels"):
        read(tmp_path / "1.png")


def test_jpeg_images_with_many_scans_are_not_decoded(tmp_path):
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]  # at 64 megapixels, each takes 0.07 s
    path = tmp_path / "scans.jpg"
    path.write_bytes(data[:-2] + 90 * last + data[-2:])
    assert read(path).shape == (64, 64, 3)
    path.write_bytes(data[:-2] + 200 * last + data[-2:])
    with pytest.raises(BadTruth, match="scans.jpg cannot be decoded .it has 20[0-9] scans"):
        read(path)


def test_the_pixels_of_all_frames_of_a_clip_are_limited(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    monkeypatch.setattr(images, "MAX_CLIP_PIXELS", 2 * 64)
    assert images.read_clip(paths[:2], None)[0].shape == (2, 8, 8, 3)
    assert images.read_clip(paths, 4)[0].shape == (3, 4, 4, 3)
    with pytest.raises(BadTruth, match="3 images of 8 x 8 pixels, more than 128 pixels"):
        images.read_clip(paths, None)
    monkeypatch.setattr(images, "MAX_READ_PIXELS", 2 * 64)
    assert images.read_clip(paths[:2], 4)[0].shape == (2, 4, 4, 3)
    with pytest.raises(BadTruth, match="3 images of 8 x 8 pixels, more than 128 pixels"):
        images.read_clip(paths, 4)


def test_a_clip_that_is_not_resized_has_at_most_the_pixels_that_pages_show():
    assert images.MAX_CLIP_PIXELS <= results_file.MAX_PIXELS


def test_named_pipes_and_devices_are_bad_rows(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    os.symlink("/dev/zero", tmp_path / "2.png")
    for number in (1, 2):
        with pytest.raises(BadTruth, match="Not a regular file"):
            read(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="cannot be read .Not a regular file"):
        images.read_list(tmp_path / "1.png")


@pytest.mark.parametrize(
    "name", ["a\0b", "../..", "/etc", "a" * 5000, "a/../../b", ".", "/".join(["a" * 200] * 30)]
)
def test_lists_with_names_outside_the_data_set_are_one_sentence(tmp_path, name):
    (tmp_path / "val.txt").write_text(f"scene_0 more words\n{name}\n")
    with pytest.raises(UserError, match="write the name of a folder") as caught:
        images.read_list(tmp_path / "val.txt")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a/b", "./a/b", "a//b/"])
def test_lists_that_repeat_a_folder_are_one_sentence(tmp_path, name):
    (tmp_path / "val.txt").write_text(f"a/b\nb\n{name}\n")
    with pytest.raises(UserError, match="twice: remove the repetition"):
        images.read_list(tmp_path / "val.txt")


def test_folders_whose_name_is_not_valid_are_one_sentence(tmp_path):
    for name in ("a\0b", "a" * 5000):
        with pytest.raises(UserError, match="cannot be listed"):
            images.list_frames(tmp_path / name)
