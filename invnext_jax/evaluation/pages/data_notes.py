"""Sentences about differences in the data and the clips of the evaluations of a comparison."""

from collections.abc import Sequence

from invnext_jax.evaluation.pages import row_names, row_options, video_labels
from invnext_jax.evaluation.pages.paired_differences import (
    Evaluation,
    Protocol,
    same_rows,
    same_videos,
)


def describe_videos(evaluations: Sequence[Evaluation]) -> str:
    """Returns a sentence about the held-out videos of all encoders; "" if they are unknown."""
    first, *others = evaluations
    if any(not same_videos(first, other) or _find_different(first, other)[0] for other in others):
        return "Not all encoders are evaluated on the same held-out videos; see the notes."
    if all(map(_has_digests, evaluations)):
        return "All encoders are evaluated on the same held-out videos."
    return ""


def find_notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns sentences about differences from the first evaluation, and the notes of all."""
    first, *others = evaluations
    notes = [note for other in others for note in _compare(first, other)]
    notes += [
        f"The labels and videos of {e.title} are not shown, because its held-out manifest is "
        "neither a local file nor a rendered world of limited size."
        for e in evaluations
        if (name := _find_manifest(e)) and not video_labels.is_local(name)
    ]
    older = [e.title for e in evaluations if "videos" not in e.results]
    if others and older:
        notes.append(
            f"The results of {', '.join(older)} contain no hash of the videos, so their videos are "
            "compared by the manifests only. To add it, repeat launch/evaluate.py."
        )
    notes += [f"{e.title}: {note}" for e in evaluations for note in e.results.get("notes", ())]
    return notes


def _find_manifest(evaluation: Evaluation) -> str:
    return evaluation.results.get("run", {}).get("config", {}).get("val_manifest", "")


def _compare(first: Evaluation, other: Evaluation) -> list[str]:
    """Returns sentences about differences in the data or the clips of two evaluations."""
    notes = []
    if not same_videos(first, other):
        notes.append(
            f"{other.title} and {first.title} have different held-out videos, so no differences "
            "are shown."
        )
    else:
        what = "held-out videos", "captions, candidates or text towers"
        notes += [
            f"{other.title} and {first.title} have different {name} for "
            f"{', '.join(map(row_names.in_words, evaluators))}, so their differences are not shown."
            for name, evaluators in zip(what, _find_different(first, other), strict=True)
            if evaluators
        ]
    if not same_videos(first, other, "train"):
        notes.append(
            f"The probes of {other.title} and {first.title} were trained on different videos."
        )
    notes += _compare_options(first, other)
    commits = [str(e.results.get("run", {}).get("git") or "") for e in (first, other)]
    if all(commits) and commits[0] != commits[1]:
        notes.append(
            f"{first.title} and {other.title} were measured with different versions of the code "
            f"({commits[0][:12]} and {commits[1][:12]}). To measure them with the same version, "
            "repeat launch/evaluate.py with new workdirs."
        )
    clips = [row_options.find_clips(e.results) for e in (first, other)]
    if changed := [name for name in clips[0] if clips[0][name] != clips[1].get(name)]:
        values = ", ".join(f"{name} {clips[0][name]} and {clips[1].get(name)}" for name in changed)
        notes.append(f"The clips of {first.title} and {other.title} differ: {values}.")
    return notes


def _compare_options(first: Evaluation, other: Evaluation) -> list[str]:
    """Returns sentences about options that differ between the evaluators that both have."""
    titles = first.title, other.title
    found = row_options.describe_changes([first.results, other.results], titles)
    return [
        f"{text}, so their rows of {', '.join(evaluators)} are not judged better or worse."
        for text, evaluators in found.items()
    ]


def _find_different(first: Evaluation, other: Evaluation) -> tuple[list[str], list[str]]:
    """Returns the evaluators that measured the two encoders on different data.

    The first list has those with different videos, the second one those with the same videos and
    different texts.
    """
    found: dict[str, bool] = {}  # whether the videos differ
    for row in first.results["rows"]:
        protocol = Protocol(row["metric"], row["evaluator"], row["input"])
        match = other.find_rows(protocol, row["name"]).get(row["task"])
        if match is not None and not same_rows((first, row), (other, match)):
            without = ({**r, "texts_digest": None} for r in (row, match))
            same = same_rows(*zip((first, other), without, strict=True))
            found[row["evaluator"]] = found.get(row["evaluator"], False) or not same
    return [n for n, videos in found.items() if videos], [
        n for n, videos in found.items() if not videos
    ]


def _has_digests(evaluation: Evaluation) -> bool:
    """Returns whether the results identify all held-out videos by their content.

    The rows of data sets without manifests have a hash of the names of their videos only.
    """
    rows = evaluation.results["rows"]
    has_own = all("videos_digest" in row for row in rows if "videos_key" in row)
    return bool(evaluation.results.get("videos", {}).get("val")) and has_own
