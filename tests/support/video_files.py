"""Fixtures: small videos whose frames show their number, and a small world on disk."""

import fractions
import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec

BLOCK, BITS = 16, 8  # a frame shows its number in binary, one block for each bit


def draw_number(number, height, width):
    image_hwc = np.full((height, width, 3), 96, np.uint8)
    for bit in range(BITS):
        x, y = bit % 4 * BLOCK, bit // 4 * BLOCK
        image_hwc[y : y + BLOCK, x : x + BLOCK] = 235 if number >> bit & 1 else 20
    return image_hwc


def read_numbers(frames_thwc):
    """Reads the numbers from frames of any scale."""
    unit = frames_thwc.shape[2] / 80
    numbers = []
    for image_hwc in frames_thwc:
        number = 0
        for bit in range(BITS):
            x, y = (bit % 4 + 0.5) * BLOCK * unit, (bit // 4 + 0.5) * BLOCK * unit
            number |= int(image_hwc[int(y), int(x)].mean() > 127) << bit
        numbers.append(number)
    return numbers


def write_video(path, *, codec="libx264", frames=60, pix_fmt="yuv420p", options=None, **extra):
    """Encodes `frames` numbered images; `extra` may set size, times (in 1/25 s) and container."""
    height, width = extra.get("size", (48, 80))
    times = extra.get("times")
    with av.open(str(path), "w", options=extra.get("container", {})) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = options or {}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw_number(number, height, width), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], fractions.Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def write_audio(path):
    """Writes a file with an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        audio.rate = 8000
        container.mux(stream.encode(audio))
        container.mux(stream.encode())
    return Path(path)


@pytest.fixture(scope="session")
def videos():
    return SimpleNamespace(write=write_video, write_audio=write_audio, numbers=read_numbers)


@pytest.fixture(scope="session")
def edit_start():
    """Returns a function that shifts the edit list of an MP4 file (25 frames per second)."""

    def edit(path, frames):
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            tick = int(1 / (25 * container.streams.video[0].time_base))
        at = data.index(b"elst") + 12  # after version, flags and the number of entries
        duration, start = struct.unpack(">Ii", data[at : at + 8])
        data[at : at + 8] = struct.pack(">Ii", duration, start + frames * tick)
        return bytes(data)

    return edit


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory):
    """Twelve training clips of the simple level on disk."""
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldSpec(), folder, 12, progress=False)
    return folder
