"""The endless stream of training batches: which clip comes when, and what stands in for a bad one.

Batch n of a run holds the global clips n * B ... (n + 1) * B - 1, and a process takes its block of
them. Which video a global clip shows, and how it is cut, follows from the seed and its number
alone, not from the number of workers or processes. Where a video cannot be read, another one takes
its place, which follows from the same two numbers. See docs/data.md.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from invnext_jax.data import sources
from invnext_jax.data.clips import BadClip, make_rng
from invnext_jax.data.drops import DropCounter
from invnext_jax.data.pool import OrderedPool
from invnext_jax.data.workers import ProcessWorker, ThreadWorker, TimeLimitError, WorkerDiedError
from invnext_jax.errors import UserError

IN_PROCESS_THREADS = 4
MAX_TRIES = 100  # videos tried for one place in a batch
MAX_ENDED = 5  # of them that hang or kill their worker, each of which takes its time
_CUT, _SUBSTITUTE = 0, 1  # streams of random numbers


class Filled(NamedTuple):
    """What the search for one clip gave: the clip, if any, and the bad ones tried before."""

    clip: dict[str, Any] | None
    bad: list[BadClip]


class TrainDataset:
    """Endless shuffled batches; see `pipeline.make_train_dataset`."""

    def __init__(  # noqa: PLR0913, one caller, all by name
        self,
        manifest: sources.Manifest,
        load: Callable,
        *,
        workers: int,
        prefetch: int,
        clip_seconds: float,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        drops: DropCounter,
    ):
        self.batch_size, self.global_batch = batch_size, batch_size * process_count
        self.drops = drops
        self._first_clip = process_index * batch_size
        self._rows, self._seed, self._load = manifest, seed, load
        source = grain.MapDataset.source(sources.VideoFileSource(manifest))
        self._order = source.seed(seed).shuffle().repeat()
        self._workers, self._prefetch, self._seconds = workers, prefetch, clip_seconds

    def __iter__(self) -> "TrainIterator":
        return TrainIterator(self)

    def open_pool(self, batches: int) -> OrderedPool:
        """Starts to make this process's clips after those of the first `batches` batches."""
        seats = self._workers or IN_PROCESS_THREADS
        kind = ProcessWorker if self._workers else ThreadWorker
        waiting = seats * self._prefetch if self._workers else self._prefetch
        return OrderedPool(
            lambda number, call: self._fill(batches * self.batch_size + number, call),
            functools.partial(kind, self._load),
            workers=seats,
            ahead=seats + waiting,
            seconds=self._seconds,
        )

    def _fill(self, number: int, call: Callable[..., Any]) -> Filled:
        """Makes clip `number` of this process, trying other videos where the wanted one is bad."""
        batch, place = divmod(number, self.batch_size)
        clip = batch * self.global_batch + self._first_clip + place
        bad, ended = [], 0
        for attempt in range(MAX_TRIES):
            record = self._choose(clip, attempt)
            try:
                made = call(record, (self._seed, clip, attempt, _CUT))
            except TimeLimitError:
                reason = f"{record.name}: took longer than {self._seconds:g} s"
                made, ended = BadClip(record.name, "time limit", reason), ended + 1
            except WorkerDiedError:
                reason = f"{record.name}: its worker died twice"
                made, ended = BadClip(record.name, "worker died", reason), ended + 1
            if not isinstance(made, BadClip):
                return Filled(made, bad)
            bad.append(made)
            if self.drops.fails or ended == MAX_ENDED:
                break
        return Filled(None, bad)

    def _choose(self, clip: int, attempt: int) -> sources.VideoRecord:
        if not attempt:
            return self._order[clip]
        rng = make_rng(self._seed, clip, attempt, _SUBSTITUTE)
        return self._rows[int(rng.integers(len(self._rows)))]


class TrainIterator:
    """Iterates over a `TrainDataset`; close it when done."""

    def __init__(self, dataset: TrainDataset):
        self._dataset, self._batches = dataset, 0
        self._pool = None

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._pool is None:
            self._pool = self._dataset.open_pool(self._batches)
        batch = stack([self._take() for _ in range(self._dataset.batch_size)])
        self._batches += 1
        return batch

    def _take(self) -> dict[str, Any]:
        clip, bad = self._pool.take()
        drops = self._dataset.drops
        for one in bad:
            drops.bad(one)
        if clip is None:
            raise drops.gave_up(len(bad))
        drops.good()
        return clip

    def get_state(self) -> dict[str, int]:
        """Where it stands: clips delivered to all processes together."""
        return {"clips": self._batches * self._dataset.global_batch}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where an iterator stood, whatever its number of workers and processes.

        Raises:
            UserError: The state is another version's, or another batch size's.
        """
        clips = state.get("clips") if isinstance(state, Mapping) else None
        if not isinstance(clips, int):
            raise UserError(
                "the position in the data was saved by another version of the input pipeline; "
                "choose another --workdir, and start from this run by config.init_from"
            )
        batches, rest = divmod(clips, self._dataset.global_batch)
        if rest:
            raise UserError(
                f"the position in the data, {clips} clips, is no whole number of batches of "
                f"{self._dataset.global_batch}: go on with the batch size of before"
            )
        self.close()
        self._batches = batches

    def summary(self) -> str:
        """A sentence on what was read and what the workers took; "" before the first batch."""
        if self._pool is None:
            return ""
        drops, memory = self._dataset.drops, self._pool.peak_memory()
        text = f"data: {drops.delivered} clips, {drops.dropped} bad"
        if self._pool.restarts:
            text += f", {self._pool.restarts} workers replaced"
        if memory:
            text += f", at most {memory / 2**20:.0f} MiB a worker"
        return text + (f"\n{drops.table()}" if drops.dropped else "")

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def stack(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A batch of clips."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
