"""Which frames of a video a clip takes.

Shape key: t frames.
"""

import numpy as np


def sample_sparse(frame_count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """Takes one frame from each of `frames` equal segments of a video.

    Args:
        frame_count: Frames of the video; fewer than `frames` are repeated in order.
        frames: Frames wanted.
        rng: Draws the place in each segment; None takes its centre.

    Returns:
        int64 [t], never falling.
    """
    place_t = np.full(frames, 0.5) if rng is None else rng.random(frames)
    index_t = ((np.arange(frames) + place_t) * frame_count / frames).astype(np.int64)
    return np.minimum(index_t, frame_count - 1)


def sample_dense(
    frame_count: int, frames: int, stride: tuple[int, int], rng: np.random.Generator | None
) -> np.ndarray:
    """Takes frames at equal distances from a random place of a video.

    Args:
        frame_count: Frames of the video; past its end the last one is repeated.
        frames: Frames wanted.
        stride: Least and greatest distance in frames; one is drawn for the clip.
        rng: Draws distance and place; None takes the middle of both.

    Returns:
        int64 [t], never falling.
    """
    low, high = stride
    step = (low + high) // 2 if rng is None else rng.integers(low, high, endpoint=True)
    room = max(0, frame_count - 1 - (frames - 1) * step)
    start = room // 2 if rng is None else rng.integers(room, endpoint=True)
    return np.minimum(start + step * np.arange(frames), frame_count - 1)
