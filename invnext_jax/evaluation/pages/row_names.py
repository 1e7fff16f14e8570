"""Names and notes of the rows of tables, and their order."""

NAMES = {
    "random": "random initialization",
    "encoder": "this encoder",
    "knn": "nearest neighbors",
}
INPUTS = {
    "boxes": "true boxes",
    "frames": "frame means",
}
NOTES = {
    "chance": "1 / number of classes",
    "random_scores": "random scores",
    "first_frame": "a single frame, without motion",
    "bag_of_frames": "all frames, without their order",
    "static": "the first frame, without motion",
    "constant": "the mean depth of the training clips, for all pixels",
    "pixel_mean": "the mean depth of each pixel",
    "random": "the same encoder before training; {evaluator}",
    "encoder": "frozen encoder; {evaluator}",
    "supervised": "the same encoder trained with labels for {steps} steps; not an upper bound",
    "ordered_track": "the output of a perfect tracker",
    "token_truth": "the ground truth at the resolution of the tokens",
}
# Order of rows from top to bottom: lower baselines, encoders, upper baselines. Rows with other
# names are placed next to the encoders.
BASELINES = ("first_frame", "bag_of_frames", "static", "constant", "pixel_mean")
ORDER = (
    "chance",
    *BASELINES,
    "random",
    "encoder",
    "supervised",
    "ordered_track",
    "token_truth",
)


def in_words(name: str) -> str:
    """Replaces underscores with spaces: "bag_of_frames" becomes "bag of frames"."""
    return NAMES.get(name, name.replace("_", " "))


def describe_input(name: str) -> str:
    """Returns the input of a row in words: "frames, 20 neighbors" becomes "frame means, ..."."""
    first, *others = name.split(", ")
    return ", ".join([INPUTS.get(first, first), *others])
