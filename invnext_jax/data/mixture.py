"""Infinite order of training videos: each row equally often, or each source in a given share.

A source is reshuffled after each pass over it. Any position of the order can be computed without
computing the earlier positions.
"""

import collections
import math
from collections.abc import Sequence

import grain
import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.clips import make_rng
from invnext_jax.errors import UserError

SUBSTITUTE_STREAM = 1  # random stream for this module; stream 0 samples the clips
MAX_TABLE_ROWS = 20
WEIGHT_STEPS = 100  # weights are rounded to multiples of the smallest weight / 100


class VideoFileSource:
    """A grain data source of all or selected rows of a manifest.

    Args:
        manifest: The manifest.
        rows: Numbers of the selected rows, in order. None selects all rows.
    """

    def __init__(self, manifest: manifest_lib.Manifest, rows: Sequence[int] | None = None):
        self.manifest = manifest
        self._rows = range(len(manifest)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> manifest_lib.VideoRecord:
        return self.manifest[int(self._rows[index])]

    def __repr__(self) -> str:
        return f"VideoFileSource(rows={len(self)})"


class Mixture:
    """Infinite order of a manifest's rows.

    Args:
        manifest: The manifest.
        weights: A (source, weight) pair for each `source` in the manifest. If empty, all rows occur
            equally often.
        seed: Seed of the order.

    Attributes:
        manifest: The manifest.
        shares: Maps the name of each source to its share of the videos.

    Raises:
        UserError: A source has no weight, a weight has no source, or a weight is not a positive
            number.
    """

    def __init__(
        self, manifest: manifest_lib.Manifest, weights: Sequence[tuple[str, float]], seed: int
    ):
        self.manifest, self._seed = manifest, seed
        self._counts = collections.Counter(manifest.sources)
        if not weights:
            source = grain.MapDataset.source(VideoFileSource(manifest))
            self._order = source.seed(seed).shuffle().repeat()
            self._rows, self._probabilities = [range(len(manifest))], np.ones(1)
            self.shares = {name: n / len(manifest) for name, n in self._counts.items()}
            return
        names = _check_weights(weights, self._counts)
        least = min(weight for _, weight in weights)
        parts = np.array([round(WEIGHT_STEPS * weight / least) for _, weight in weights], object)
        self._rows = _rows_by_source(manifest, names)
        self._probabilities = (parts / parts.sum()).astype(float)
        self.shares = dict(zip(names, self._probabilities.tolist(), strict=True))
        shuffled = []
        for number, rows in enumerate(self._rows):
            source = grain.MapDataset.source(VideoFileSource(manifest, rows))
            source_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            shuffled.append(source.seed(source_seed).shuffle().repeat())
        self._order = grain.MapDataset.mix(shuffled, weights=parts.tolist())

    def get_video(self, position: int, attempt: int = 0) -> manifest_lib.VideoRecord:
        """Returns the video at a position, or one of its substitutes if `attempt` is positive."""
        if not attempt:
            return self._order[position]
        rng = make_rng(self._seed, position, attempt, SUBSTITUTE_STREAM)
        source = rng.choice(len(self._rows), p=self._probabilities) if len(self._rows) > 1 else 0
        rows = self._rows[source]
        return self.manifest[int(rows[int(rng.integers(len(rows)))])]

    def table(self, clips: int) -> str:
        """Formats a table of the sources for a run of `clips` clips.

        Its columns are the rows, the share of the clips, and the epochs (clips / rows).
        """
        width = max(len("source"), *(len(name) for name in self.shares))
        lines = [f"{'source':{width}} {'rows':>11} {'share':>8} {'epochs':>8}"]
        for name, share in list(self.shares.items())[:MAX_TABLE_ROWS]:
            epochs = share * clips / self._counts[name]
            lines.append(f"{name:{width}} {self._counts[name]:11,} {share:8.2%} {epochs:8.2f}")
        if len(self.shares) > MAX_TABLE_ROWS:
            lines.append(f"and {len(self.shares) - MAX_TABLE_ROWS} more")
        return "\n".join(lines)


def _check_weights(weights: Sequence[tuple[str, float]], counts: collections.Counter) -> list[str]:
    """Returns the names of the weighted sources."""
    for pair in weights:
        if not _is_pair(pair):
            raise UserError(
                f"config.data.weights: {pair!r} must be a source and a weight above 0, such as "
                "('ssv2', 0.5)"
            )
    names = [name for name, _ in weights]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"config.data.weights contains the source {repeated[0]!r} twice")
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise UserError(
            f"config.data.weights: the manifest has no source {unknown[0]!r}, only "
            f"{', '.join(map(repr, counts))}"
        )
    missing = [name for name in counts if name not in names]
    if missing:
        raise UserError(
            f"config.data.weights has no weight for the source {missing[0]!r}: add one, or remove "
            "its rows from the manifest"
        )
    return names


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    weight = pair[1]
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return number and math.isfinite(weight) and weight > 0


def _rows_by_source(manifest: manifest_lib.Manifest, names: Sequence[str]) -> list[np.ndarray]:
    """Returns the row numbers of each source, in ascending order."""
    numbers = {name: number for number, name in enumerate(names)}
    source_of_row = np.fromiter((numbers[name] for name in manifest.sources), np.int32)
    return [np.flatnonzero(source_of_row == number) for number in range(len(names))]
