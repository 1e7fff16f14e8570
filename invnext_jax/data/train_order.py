"""The order of the training videos.

The order is infinite. Either all rows occur equally often, or each source makes up a given fraction
of the order. A source is reshuffled after each pass over it, either globally or in blocks of rows
from a few files. Any position of the order can be computed without computing the earlier positions.
See docs/data.md.
"""

import collections
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import shards, sources
from invnext_jax.data.clips import make_rng
from invnext_jax.data.manifest import NO_RECORD

CLIP_STREAM, SUBSTITUTE_STREAM, FILE_STREAM, BLOCK_STREAM = range(4)  # random streams
MAX_TABLE_ROWS = 20
WEIGHT_STEPS = 100  # weights are rounded to multiples of the smallest weight / 100
CACHED_POSITIONS = 4096  # each video is looked up twice: when it is prefetched and when it is read


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


class BlockShuffle:
    """Infinite order in which each pass over the rows reads the files in blocks.

    In each pass, the files are in a random order, in which their rows are split into blocks of
    almost equal size. The rows of each block are shuffled.

    Args:
      manifest: The manifest.
      rows: Numbers of the rows that occur.
      size: Maximum number of rows in a block.
      seed: Seed of the order.

    Attributes:
      files: Number of files.
      blocks: Number of blocks in a pass.
    """

    def __init__(self, manifest: manifest_lib.Manifest, rows: Sequence[int], size: int, seed: int):
        self._manifest, self._seed, self._length = manifest, seed, len(rows)
        numbers = {}
        file_of_row = np.fromiter(
            (numbers.setdefault(manifest.paths[row], len(numbers)) for row in rows), np.int64
        )
        self.files, self.blocks = len(numbers), -(-len(rows) // size)
        self._rows = np.asarray(rows)[np.argsort(file_of_row, kind="stable")]  # file by file
        self._counts = np.bincount(file_of_row, minlength=len(numbers))
        self._starts = np.cumsum(self._counts) - self._counts
        # The prefetched positions are in at most two passes.
        self._pass = functools.lru_cache(2)(self._shuffle_files)
        self._block_seed = functools.lru_cache(16)(self._make_block_seed)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> manifest_lib.VideoRecord:
        """Returns the video at a position of the order."""
        number, place = divmod(position, self._length)
        block = ((place + 1) * self.blocks - 1) // self._length
        first, end = (n * self._length // self.blocks for n in (block, block + 1))
        shuffled = grain.experimental.index_shuffle(
            place - first, max_index=end - first - 1, seed=self._block_seed(number, block), rounds=4
        )
        return self._manifest[self._row_at(number, first + shuffled)]

    def file_ahead(self, position: int) -> str:
        """Returns a file whose rows are in the block after that of a position.

        While the position passes through a block, each file of the next block is returned in turn.
        """
        number, place = divmod(position + self._length // self.blocks, self._length)
        return self._manifest.paths[self._row_at(number, place)]

    def _row_at(self, number: int, place: int) -> int:
        """Returns the row at a place of pass `number` in which only the files are shuffled."""
        files, ends = self._pass(number)
        position = int(np.searchsorted(ends, place, side="right"))
        file = files[position]
        return int(self._rows[self._starts[file] + place - ends[position] + self._counts[file]])

    def _shuffle_files(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the files in the order of a pass, and the place after the last row of each."""
        words = np.random.SeedSequence((self._seed, number, FILE_STREAM))
        # Unlike `Generator.permutation`, these values are the same in all versions of NumPy.
        files = np.argsort(np.random.Philox(words).random_raw(self.files), kind="stable")
        return files, np.cumsum(self._counts[files])

    def _make_block_seed(self, number: int, block: int) -> int:
        words = np.random.SeedSequence((self._seed, number, block, BLOCK_STREAM))
        return int(words.generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class _FilesAhead:
    """A grain data source of `BlockShuffle.file_ahead`."""

    shuffle: BlockShuffle

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> str:
        return self.shuffle.file_ahead(position)


class Mixture:
    """Infinite order of a manifest's rows.

    Args:
      manifest: The manifest.
      weights: A (source, weight) pair for each `source` in the manifest. If empty, all rows occur
          equally often.
      seed: Seed of the order.
      rows: Numbers of the rows that occur, in ascending order. None selects all rows.
      block_size: Maximum number of rows in a block of `BlockShuffle`. 0 shuffles globally.

    Attributes:
      manifest: The manifest.
      blocks: The orders of the sources if they are shuffled in blocks.
      order: The videos at all positions, a `grain.MapDataset` of records.
      videos: Number of rows that occur.
      shares: Maps the name of each source to its fraction of the order.
      absent: Names of the sources that have no rows in the order.

    Raises:
      UserError: A source has no weight, a weight has no source or no rows that occur, or a weight
          is not a positive number.
    """

    def __init__(
        self,
        manifest: manifest_lib.Manifest,
        weights: Sequence[tuple[str, float]],
        seed: int,
        rows: Sequence[int] | None = None,
        block_size: int = 0,
    ):
        self.manifest, self._seed, self.blocks = manifest, seed, []
        rows = range(len(manifest)) if rows is None else rows
        self.videos = len(rows)
        self._counts = collections.Counter(manifest.sources[row] for row in rows)
        self.absent = [name for name in dict.fromkeys(manifest.sources) if not self._counts[name]]
        if not weights:
            self._rows, self._probabilities = [rows], np.ones(1)
            self.shares = {name: n / self.videos for name, n in self._counts.items()}
            self._set_order([seed], [1], block_size)
            return
        names = sources.check_weights(weights, collections.Counter(manifest.sources), self._counts)
        least = min(weight for _, weight in weights)
        parts = np.array([round(WEIGHT_STEPS * weight / least) for _, weight in weights], object)
        self._rows = _rows_by_source(manifest, names, rows)
        self._probabilities = (parts / parts.sum()).astype(float)
        self.shares = dict(zip(names, self._probabilities.tolist(), strict=True))
        seeds = [
            int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            for number in range(len(self._rows))
        ]
        self._set_order(seeds, parts.tolist(), block_size)

    def _set_order(self, seeds: list[int], parts: list[int], block_size: int) -> None:
        """Shuffles the rows of each source with its seed, and mixes the sources."""
        source, sets = grain.MapDataset.source, zip(self._rows, seeds, strict=True)
        if block_size:
            blocks = [BlockShuffle(self.manifest, rows, block_size, seed) for rows, seed in sets]
            shuffled, self.blocks = list(map(source, blocks)), blocks
            self._files_ahead = _mix([source(_FilesAhead(block)) for block in blocks], parts)
        else:
            shuffled = [
                source(VideoFileSource(self.manifest, rows)).seed(seed).shuffle().repeat()
                for rows, seed in sets
            ]
        self.order = _mix(shuffled, parts)
        self._cached_video = functools.lru_cache(CACHED_POSITIONS)(self.order.__getitem__)

    def get_video(self, position: int, attempt: int = 0) -> manifest_lib.VideoRecord:
        """Returns the video at a position of the order, or a substitute if `attempt` is above 0."""
        if not attempt:
            return self._cached_video(position)
        rng = make_rng(self._seed, position, attempt, SUBSTITUTE_STREAM)
        source = rng.choice(len(self._rows), p=self._probabilities) if len(self._rows) > 1 else 0
        rows = self._rows[source]
        return self.manifest[int(rows[int(rng.integers(len(rows)))])]

    def get_file_ahead(self, position: int) -> str | None:
        """Returns a file of the next block, see `BlockShuffle.file_ahead`; None without blocks."""
        return self._files_ahead[position] if self.blocks else None

    def describe_blocks(self) -> str:
        """Describes how many files are read at a time; "" if the rows are shuffled globally."""
        if not self.blocks:
            return ""
        files, opened = sum(b.files for b in self.blocks), self._files_per_block()
        text = f"shuffled in blocks of rows from about {opened:,} of {files:,} files at a time"
        if opened <= shards.MAX_OPEN or not (self.manifest.record != NO_RECORD).any():
            return text
        return text + (
            f"; a worker keeps only {shards.MAX_OPEN} shards open: reduce "
            "config.data.shuffle_block_size, or write larger shards"
        )

    def _files_per_block(self) -> int:
        """Returns the approximate number of files that have rows in the current blocks."""
        return sum(min(b.files, b.files // b.blocks + 1) for b in self.blocks)

    def table(self, clips: int, describe: Callable[[str], str]) -> str:
        """Formats a table of the sources for a run of `clips` clips.

        Its columns are the rows, the share of the clips, the epochs (clips / rows), and the
        options that `describe` returns for a source.
        """
        width = max(len("source"), *(len(name) for name in self.shares))
        lines = [f"{'source':{width}} {'rows':>11} {'share':>8} {'epochs':>8}  options"]
        for name, share in list(self.shares.items())[:MAX_TABLE_ROWS]:
            epochs = share * clips / self._counts[name]
            numbers = f"{self._counts[name]:11,} {share:8.2%} {epochs:8.2f}"
            lines.append(f"{name:{width}} {numbers}  {describe(name)}")
        if len(self.shares) > MAX_TABLE_ROWS:
            lines.append(f"and {len(self.shares) - MAX_TABLE_ROWS} more")
        return "\n".join(lines)


def _mix(datasets: list[grain.MapDataset], parts: list[int]) -> grain.MapDataset:
    """Mixes datasets in proportion to `parts`."""
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, weights=parts)


def _rows_by_source(
    manifest: manifest_lib.Manifest, names: Sequence[str], rows: Sequence[int]
) -> list[np.ndarray]:
    """Returns those of the given rows that each source has, in ascending order."""
    numbers = {name: number for number, name in enumerate(names)}
    source_of_row = np.fromiter((numbers[manifest.sources[row]] for row in rows), np.int32)
    rows = np.asarray(rows)
    return [rows[source_of_row == number] for number in range(len(names))]
