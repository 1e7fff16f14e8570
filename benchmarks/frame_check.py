"""Compares the frames of this package's decoder with those of the program ffmpeg.

    python -m benchmarks.frame_check [FOLDER] [--keep=FOLDER]

Without FOLDER, it makes about 130 small files (see `frame_files`). For each file, it compares the
number of frames and every frame with ffmpeg, and single frames and clips with the same frames of a
complete read. Files that ffmpeg reads with errors are only counted. The last line of the output is
a JSON object with the counts. The exit code is 1 if a file differs. `ffmpeg` must be on the PATH.

Shape key: t frames, h w pixels, c channels.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import frame_files
from invnext_jax.data import decode

SHORT_SIDE = 96  # pixels; larger than the generated files, so that these are not scaled
LIMIT = 300  # maximum number of frames per file that are compared
BLOCK = 8  # side in pixels of the blocks whose means are compared
# Maximum mean difference of a frame in levels. The scalers of FFmpeg 5 and 8 place chroma half a
# pixel apart.
MAX_APART = 3.0


def read_with_ffmpeg(
    path: Path, height: int, width: int, limit: int = LIMIT
) -> tuple[np.ndarray, str]:
    """Decodes a file with ffmpeg.

    Args:
      path: The file.
      height: Height of the scaled frames in pixels.
      width: Width of the scaled frames in pixels.
      limit: Maximum number of frames.

    Returns:
      uint8 [t h w c], and the messages of ffmpeg.
    """
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path), "-an"]
    command += ["-vsync", "passthrough", "-frames:v", str(limit), "-threads", "1"]
    command += ["-vf", f"scale={width}:{height}:flags=bilinear", "-pix_fmt", "rgb24"]
    done = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=False)
    count = len(done.stdout) // (height * width * 3)
    frames = np.frombuffer(done.stdout[: count * height * width * 3], np.uint8)
    return frames.reshape(count, height, width, 3), done.stderr.decode(errors="replace").strip()


def compare(path: Path) -> tuple[str, str]:
    """Compares one file.

    Returns:
      The outcome ("equal", "both refuse", "ffmpeg errors", "only ffmpeg reads", "only we read",
      "number", "pixels" or "seek") and a sentence about the difference, "" if there is none.
    """
    total = []
    try:
        frames_thwc = _read(path, lambda n: (total.append(n), range(min(n, LIMIT)))[1])
    except decode.BadVideo as error:
        theirs, messages = read_with_ffmpeg(path, SHORT_SIDE, SHORT_SIDE, 5)
        if len(theirs) and not messages:
            return "only ffmpeg reads", str(error)
        return ("both refuse" if not len(theirs) else "ffmpeg errors"), ""
    count, height, width, _ = frames_thwc.shape
    theirs, messages = read_with_ffmpeg(path, height, width)
    if not len(theirs):
        return "only we read", ""
    seek = _compare_seeks(path, frames_thwc)
    if seek:
        return "seek", seek
    outcome, sentence = "equal", ""
    apart_t = np.abs(_pool(frames_thwc[: len(theirs)]) - _pool(theirs[:count])).mean((1, 2, 3))
    if len(theirs) != min(total[0], LIMIT):
        outcome, sentence = "number", f"{total[0]} frames, ffmpeg shows {len(theirs)}"
    elif apart_t.max() > MAX_APART:
        sentence = f"frame {apart_t.argmax()} differs by {apart_t.max():.1f} levels"
        outcome = "pixels"
    return ("ffmpeg errors" if _is_error(messages) else outcome), sentence


def _pool(frames_thwc: np.ndarray) -> np.ndarray:
    """Returns the means of blocks, which do not depend on the interpolation of chroma."""
    height, width = (side // BLOCK * BLOCK for side in frames_thwc.shape[1:3])
    blocks = frames_thwc[:, :height, :width].astype(np.float32)
    return blocks.reshape(len(blocks), height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3).mean(
        (2, 4)
    )


def _is_error(messages: str) -> bool:
    """Returns whether ffmpeg reported an error of the input, not of the output time stamps."""
    lines = [line for line in messages.splitlines() if "repeated" not in line]
    return any("monotonically" not in line for line in lines)


def _compare_seeks(path: Path, frames_thwc: np.ndarray) -> str:
    """Compares single frames and two clips with the same frames of a complete read."""
    count = len(frames_thwc)
    picks = [[int(number)] for number in np.unique(np.linspace(0, count - 1, 10).astype(int))]
    picks += [list(range(count // 2, min(count, count // 2 + 29), 4))]
    picks += [np.linspace(0, count - 1, 4).astype(int).tolist()]
    for pick in picks:
        try:
            picked_thwc = _read(path, lambda _, p=pick: p)
        except decode.BadVideo as error:
            return f"frames {pick} alone: {error}"
        if not np.array_equal(picked_thwc, frames_thwc[pick]):
            return f"frames {pick} alone differ from those of a complete read"
    return ""


def _read(path: Path, pick) -> np.ndarray:
    return decode.read_frames(str(path), pick, short_side=SHORT_SIDE)


def check_folder(folder: Path) -> collections.Counter:
    """Compares all files of a folder, prints those that differ, and returns the outcomes."""
    outcomes = collections.Counter()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".md", ".csv", ".txt", ".log"):
            outcome, sentence = compare(path)
            outcomes[outcome] += 1
            if outcome != "equal":
                print(f"{path.name}: {outcome}: {sentence}", flush=True)
    return outcomes


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="folder of videos to compare; by default, small videos are made",
    )
    parser.add_argument("--keep", type=Path, help="folder in which the made videos are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or options.keep or Path(temporary)
        if options.folder is None:
            for problem in frame_files.make_files(folder):
                print(problem)
        outcomes = check_folder(folder)
    print(json.dumps({"files": outcomes.total(), **outcomes}))
    bad = ("only ffmpeg reads", "number", "pixels", "seek")
    return int(any(outcomes[name] for name in bad))


if __name__ == "__main__":
    sys.exit(main())
