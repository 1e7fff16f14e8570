"""Re-encoding of damaged files."""

import av
import pytest

from invnext_jax.data import decode
from invnext_jax.dataset_prep.reencode import Encoding, Reencoder

ENCODE = Reencoder(Encoding(short_side=48))


def damage(path, number):
    """Overwrites the data of a packet, counted in file order."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    start, size = packets[number]
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)


@pytest.fixture
def path(videos, tmp_path):
    options = {"preset": "ultrafast", "g": "12", "bf": "0"}
    return videos.write(tmp_path / "a.mp4", options=options)


def test_frames_before_a_damaged_last_frame_are_kept(path, videos):
    damage(path, -1)
    result = ENCODE(str(path), None, None, None)
    assert result["frames"] == 59 and result["fps"] == 25 and result["duration"] == 59 / 25
    assert result["damage"].startswith("kept 59 of 60 frames")
    frames = decode.read_frames(result["video"].tobytes(), range)
    assert videos.numbers(frames) == list(range(59))


def test_a_file_that_is_mostly_damaged_is_refused(path):
    damage(path, 20)
    assert "reason" in ENCODE(str(path), None, None, None)


def test_a_window_before_the_damage_is_complete(path):
    damage(path, -1)
    result = ENCODE(str(path), None, 0.0, 2.0)
    assert result["frames"] == 50 and "damage" not in result


def test_results_of_workers_that_no_call_returns_are_not_valid(path):
    task = (str(path), None, 0.0, 0.2)
    result = ENCODE(*task)
    assert ENCODE.is_valid(result, *task) and ENCODE.is_valid({"reason": "broken"}, *task)
    assert ENCODE.is_valid({**result, "damage": "kept 59 frames"}, *task)
    for changed in (
        *(None, {}, {"reason": 1}, {**result, "more": 1}, {**result, "video": b"bytes"}),
        *({**result, "frames": 2**63}, {**result, "width": "4"}, {**result, "damage": None}),
        {**result, "video": result["video"][:100].view("uint16")},
    ):
        assert not ENCODE.is_valid(changed, *task)
