"""Perceptual hashes: re-encoded copies are similar, other videos are not."""

import json
import os

import av
import numpy as np
import pytest
from PIL import Image

from invnext_jax.dataset_prep import frame_hashes
from invnext_jax.dataset_prep.frame_hashes import HashCache
from invnext_jax.errors import UserError
from invnext_jax.video_lists.video_list import VideoEntry


def draw_scene(seed, frame, height, width):
    """Returns a video of smooth random colors that move slowly, the sum of eight waves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    image_hwc = np.zeros((height, width, 3))
    for _ in range(8):
        fy, fx, phase, speed = rng.uniform(-12, 12, 4)
        image_hwc += np.cos(fy * y + fx * x + phase + 0.02 * speed * frame)[..., None] * rng.normal(
            size=3
        )
    return np.clip(128 + 40 * image_hwc, 0, 255).astype(np.uint8)


def write(path, seed, *, codec="libx264", size=(96, 128), crf=20, frames=40, rate=25):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "ultrafast"} if codec == "libx264" else {}
        for number in range(frames):
            image = Image.fromarray(draw_scene(seed, number * 40 / frames, 96, 128))
            image = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return str(path)


def test_hash_is_that_of_a_written_out_cosine_transform():
    image_hwc = draw_scene(3, 0, 64, 64)
    gray = image_hwc @ np.array([0.299, 0.587, 0.114])
    small = gray.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    k, n = np.mgrid[:8, :32]
    basis = np.cos(np.pi * k * (2 * n + 1) / 64)
    low = (basis @ small @ basis.T).ravel()
    expected = "".join(str(int(value > np.median(low))) for value in low)
    assert f"{frame_hashes.hash_frame(image_hwc):064b}" == expected
    assert frame_hashes.hash_frame(np.full((64, 64, 3), 90, np.uint8)) is None


def test_reencoded_copies_are_similar_and_other_videos_are_not(tmp_path):
    files = [write(tmp_path / f"{seed}.mp4", seed) for seed in range(12)]
    files += [
        write(tmp_path / "smaller.mp4", 5, size=(48, 64), crf=35),
        write(tmp_path / "larger.mkv", 2, size=(192, 256), codec="mpeg4", frames=48, rate=30),
    ]
    hashes = [frame_hashes.hash_video(file, None, None) for file in files]
    found = {video: other for video, other, _ in frame_hashes.find_similar(hashes)}
    assert found == {12: 5, 13: 2}
    # A segment of a longer video has the hashes of its own frames only.
    long = write(tmp_path / "long.mp4", 7, frames=40)
    assert frame_hashes.hash_video(long, 0.8, None) != hashes[7]


@pytest.mark.parametrize(("flips", "similar"), [(19, True), (40, False)])
def test_pairs_below_4_bits_are_found_and_from_8_bits_on_are_not(flips, similar):
    rng = np.random.default_rng(0)
    first = [int(value) for value in rng.integers(0, 2**63, 5)]
    for seed in range(20):  # the changed bits are at random positions
        second = list(first)
        for place in np.random.default_rng(seed).choice(5 * 64, flips, replace=False).tolist():
            second[place // 64] ^= 1 << place % 64
        found = list(frame_hashes.find_similar([tuple(first), None, tuple(second)]))
        assert found == ([(2, 0, flips / 5)] if similar else [])


def test_frames_without_contrast_are_not_compared():
    a, b, c, d, e = np.random.default_rng(0).integers(0, 2**63, 5).tolist()
    hashes = [
        (a, b, c, None, None),
        (a, b, None, None, None),
        (a, b, c, d, e),
        (a, None, None, d, b),
    ]
    assert [pair[:2] for pair in frame_hashes.find_similar(hashes)] == [(2, 0)]


def test_cached_hashes_survive_a_partial_line(tmp_path):
    path, entry = tmp_path / "m.hashes.jsonl", VideoEntry("/a.mp4", "s", 1.5, None)
    HashCache(path).put("digest", entry, (1, None, 2**64 - 1, 4, 5))
    with path.open("ab") as file:
        file.write(b'["other", null, nu')
    HashCache(path).put("later", entry, (1, 2, 3, 4, 5))
    cache = HashCache(path)
    assert cache.get("digest", entry) == (1, None, 2**64 - 1, 4, 5)
    assert cache.get("later", entry) == (1, 2, 3, 4, 5)
    assert cache.get("digest", VideoEntry("/a.mp4", "s")) is None


def test_cached_hashes_with_other_values_are_ignored(tmp_path):
    path, entry = tmp_path / "m.hashes.jsonl", VideoEntry("/a.mp4", "s")
    for values in ([1, 2, 3, 4], [1, 2, 3, 4, "5"], [1, 2, 3, 4, -5], [1, 2, 3, 4, 2**64], 5):
        path.write_text(json.dumps(["digest", None, None, values]) + "\n" + "[" * 100_000 + "\n")
        assert HashCache(path).get("digest", entry) is None


def test_caches_that_are_too_large_or_no_files_are_refused(tmp_path):
    large, pipe = tmp_path / "large.hashes.jsonl", tmp_path / "pipe.hashes.jsonl"
    with large.open("wb") as file:
        file.truncate(frame_hashes.MAX_CACHE_BYTES + 1)  # a sparse file
    os.mkfifo(pipe)
    for path in (large, pipe):
        with pytest.raises(UserError, match="cannot be read .*: delete it to compute all hashes"):
            HashCache(path)
    endless = tmp_path / "endless.hashes.jsonl"
    with endless.open("wb") as file:
        file.truncate(2**27)  # one line
    assert HashCache(endless).get("digest", VideoEntry("/a.mp4", "s")) is None


def test_hashes_are_not_written_through_a_link(tmp_path):
    (tmp_path / "private").write_text("")
    (tmp_path / "m.hashes.jsonl").symlink_to(tmp_path / "private")
    with pytest.raises(OSError, match="symbolic link"):
        HashCache(tmp_path / "m.hashes.jsonl").put("d", VideoEntry("/a.mp4", "s"), (1,) * 5)
    assert not (tmp_path / "private").read_text()


def test_results_of_workers_that_no_call_returns_are_not_valid():
    call = frame_hashes.VideoHasher()
    for result in (None, (1, None, 0, 2**64 - 1, 5)):
        assert call.is_valid(result, "a.mp4", None, None)
    for result in ((), (1, 2, 3, 4), (1, 2, 3, 4, 2**64), (1, 2, 3, 4, -1), (1, 2, 3, 4, "5"), {}):
        assert not call.is_valid(result, "a.mp4", None, None)
