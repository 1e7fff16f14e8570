"""Which video comes when: all rows alike, or sources in given shares.

Epochs go on for ever: each source is shuffled anew when it has been seen, and any place of the
endless order is known without those before it.
"""

import collections
import math
from collections.abc import Sequence

import grain
import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.clips import make_rng
from invnext_jax.errors import UserError

SUBSTITUTE = 1  # stream of random numbers; 0 cuts the clips
SHOWN = 20  # sources in the table
STEPS = 100  # of the smallest weight; the others are rounded to whole ones


class Mixture:
    """The endless order of a manifest's rows.

    Args:
        manifest: The rows.
        weights: A (source, weight) pair for each value of the manifest's `source`, or none: every
            row equally often.
        seed: The order follows from it.

    Raises:
        UserError: A source without a weight, a weight without a source, or one that is no
            positive number.
    """

    def __init__(
        self, manifest: manifest_lib.Manifest, weights: Sequence[tuple[str, float]], seed: int
    ):
        self._manifest, self._seed = manifest, seed
        self._counts = collections.Counter(manifest.sources)
        if not weights:
            source = grain.MapDataset.source(manifest_lib.VideoFileSource(manifest))
            self._order = source.seed(seed).shuffle().repeat()
            self._rows, self._parts = [range(len(manifest))], np.ones(1)
            self.shares = {name: n / len(manifest) for name, n in self._counts.items()}
            return
        names = _check_weights(weights, self._counts)
        least = min(weight for _, weight in weights)
        parts = np.array([round(STEPS * weight / least) for _, weight in weights], object)
        self._rows = _rows_of(manifest, names)
        self._parts = (parts / parts.sum()).astype(float)
        self.shares = dict(zip(names, self._parts.tolist(), strict=True))
        shuffled = []
        for place, rows in enumerate(self._rows):
            source = grain.MapDataset.source(manifest_lib.VideoFileSource(manifest, rows))
            own_seed = int(np.random.SeedSequence((seed, place)).generate_state(1)[0])
            shuffled.append(source.seed(own_seed).shuffle().repeat())
        self._order = grain.MapDataset.mix(shuffled, weights=parts.tolist())

    def choose(self, number: int, attempt: int) -> manifest_lib.VideoRecord:
        """The video at a place of the order, or what stands in for it after `attempt` bad ones."""
        if not attempt:
            return self._order[number]
        rng = make_rng(self._seed, number, attempt, SUBSTITUTE)
        part = rng.choice(len(self._rows), p=self._parts) if len(self._rows) > 1 else 0
        rows = self._rows[part]
        return self._manifest[int(rows[int(rng.integers(len(rows)))])]

    def table(self, videos: int) -> str:
        """A line for each source: rows, share, and how often each row comes among `videos`."""
        width = max(len("source"), *(len(name) for name in self.shares))
        lines = [f"{'source':{width}} {'rows':>11} {'share':>8} {'epochs':>8}"]
        for name, share in list(self.shares.items())[:SHOWN]:
            epochs = share * videos / self._counts[name]
            lines.append(f"{name:{width}} {self._counts[name]:11,} {share:8.2%} {epochs:8.2f}")
        if len(self.shares) > SHOWN:
            lines.append(f"and {len(self.shares) - SHOWN} more")
        return "\n".join(lines)


def _check_weights(weights: Sequence[tuple[str, float]], counts: collections.Counter) -> list[str]:
    """The names in their order."""
    for pair in weights:
        if not _is_pair(pair):
            raise UserError(
                f"config.data.weights: {pair!r} must be a source and a weight above 0, such as "
                "('ssv2', 0.5)"
            )
    names = [name for name, _ in weights]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"config.data.weights names the source {twice[0]!r} twice")
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise UserError(
            f"config.data.weights: the manifest has no source {unknown[0]!r}, only "
            f"{', '.join(map(repr, counts))}"
        )
    missing = [name for name in counts if name not in names]
    if missing:
        raise UserError(
            f"config.data.weights has no weight for the source {missing[0]!r}: give one, or take "
            "its rows out of the manifest"
        )
    return names


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    weight = pair[1]
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return number and math.isfinite(weight) and weight > 0


def _rows_of(manifest: manifest_lib.Manifest, names: Sequence[str]) -> list[np.ndarray]:
    """Row numbers of each source, rising."""
    numbers = {name: number for number, name in enumerate(names)}
    source_of_row = np.fromiter((numbers[name] for name in manifest.sources), np.int32)
    return [np.flatnonzero(source_of_row == number) for number in range(len(names))]
