"""Parameters and class names of the worlds."""

import dataclasses
import numbers

from invnext_jax.errors import UserError

ANTICIPATION = "anticipation"
LEVELS = ("simple", "full", ANTICIPATION)
SPLITS = ("train", "val", "test")
SHAPES = ("disc", "ring", "square", "triangle", "cross", "saltire", "hourglass", "arch")
COLORS = ("red", "green", "blue", "yellow", "magenta", "cyan")
MOTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BACKGROUNDS = ("striped", "checkered", "cloudy", "dotted")
# The motions (0, 1), (2, 3), ... are pairs whose unordered frames have the same distribution.
FULL_MOTIONS = (
    *("left", "right", "up", "down", "closer", "away"),
    *("left then right", "right then left", "up then down", "down then up"),
)
MAX_DISTRACTORS = 2  # on the full level without `clutter`
CUE_COLORS = (*COLORS, "orange", "white")  # color i indicates motion i
OBJECT_SIZES = (0.4, 1.4)  # larger objects would cover their own wrapped part
SPEEDS = (0.25, 3.0)  # faster objects would move by half a period per frame
MAX_CLUTTER = 8
MIN_ANTICIPATION_FRAMES = 6
MIN_SIZE, MAX_SIZE = 16, 2048
MIN_FRAMES, MAX_FRAMES = 2, 4096
MAX_PIXELS = 2**28  # of all frames of a clip; 0.8 GB
MAX_SEED = 2**64


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """Parameters of a world. Clip i is a pure function of these fields and i.

    Attributes:
      level: "simple" (one bright shape on a nearly plain background, 8 directions), "full" (a
          digit among distractors over a moving texture, 10 motions) or "anticipation" (like
          "simple", but a colored square in the first third of the clip indicates the direction in
          the last third; the direction before that is independent of it).
      size: Side of a frame in pixels, from 16 to 2048.
      frames: Frames per clip, from 2 to 4096. The full level needs an even number; otherwise
          unordered frames would distinguish "left then right" from "right then left".
      seed: Non-negative seed of the world.
      split: "train", "val" or "test". The splits have no clip and no digit image in common.
      object_size: Factor by which the size of object 0 is multiplied, from 0.4 to 1.4.
      speed: Factor by which the speed of object 0 is multiplied, from 0.25 to 3.
      clutter: Number of distractors, from 0 to 8. None selects 0, or a random number from 0 to 2
          on the full level.

    Raises:
      UserError: A field is out of range.
    """

    level: str = "simple"
    size: int = 32
    frames: int = 8
    seed: int = 0
    split: str = "train"
    object_size: float = 1.0
    speed: float = 1.0
    clutter: int | None = None

    def __post_init__(self):
        if self.level not in LEVELS:
            raise UserError(f"unknown world level {self.level!r}: choose one of {LEVELS}")
        if self.split not in SPLITS:
            raise UserError(f"unknown world split {self.split!r}: choose one of {SPLITS}")
        ranges = {"size": (MIN_SIZE, MAX_SIZE), "frames": (MIN_FRAMES, MAX_FRAMES)}
        ranges |= {"seed": (0, MAX_SEED)}
        ranges |= {} if self.clutter is None else {"clutter": (0, MAX_CLUTTER)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or not low <= value <= high:
                raise UserError(f"{name}={value} must be an integer from {low} to {high}")
        if self.size**2 * self.frames > MAX_PIXELS:
            raise UserError(
                f"size={self.size}, frames={self.frames}: a clip has more than {MAX_PIXELS} "
                "pixels: reduce one of them"
            )
        if self.level == "full" and self.frames % 2:
            raise UserError(f"frames={self.frames}: the full level needs an even number of frames")
        if self.level == ANTICIPATION and self.frames < MIN_ANTICIPATION_FRAMES:
            raise UserError(
                f"frames={self.frames}: the anticipation level needs at least "
                f"{MIN_ANTICIPATION_FRAMES} frames"
            )
        for name, (low, high) in {"object_size": OBJECT_SIZES, "speed": SPEEDS}.items():
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not low <= value <= high:  # refuses NaN
                raise UserError(f"{name}={value} must be a number from {low} to {high}")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of each task of this level, in the order of the class ids."""
        if self.level == "simple":
            return {"shape": SHAPES, "color": COLORS, "motion": MOTIONS}
        if self.level == ANTICIPATION:
            actions = tuple(f"{shape} moves {motion}" for motion in MOTIONS for shape in SHAPES)
            return {"verb": MOTIONS, "noun": SHAPES, "action": actions}
        names = {"shape": DIGITS, "color": COLORS, "motion": FULL_MOTIONS}
        return {**names, "background": BACKGROUNDS}

    @property
    def max_objects(self) -> int:
        """Maximum number of objects of a clip, including the cue and the distractors."""
        default = MAX_DISTRACTORS if self.level == "full" else 0
        clutter = default if self.clutter is None else self.clutter
        return 1 + (self.level == ANTICIPATION) + clutter

    @property
    def context_frames(self) -> int:
        """Number of frames before the last third, from which the last motion is anticipated."""
        return self.frames - self.frames // 3
