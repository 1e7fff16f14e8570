"""The endless stream of training batches: which clip comes when, and what stands in for a bad one.

Batch n of a run holds the global clips n * B ... (n + 1) * B - 1, and a process takes its block of
them. Which video a global clip shows, and how it is cut, follows from the seed and its number
alone, not from the number of workers or processes. Where a video cannot be read, another one takes
its place, which follows from the same two numbers. Each `repeats` clips in a row are cut from one
video, which is decoded once: a group, the unit of work. See docs/data.md.
"""

import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import manifest
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.clips import BadClip, Seed
from invnext_jax.data.mixture import Mixture
from invnext_jax.data.worker_pool import OrderedPool, open_pool
from invnext_jax.data.workers import TimeLimitError, WorkerDiedError
from invnext_jax.errors import UserError

MAX_TRIES = 100  # videos tried for one place in a batch
MAX_ENDED = 5  # of them that hang or kill their worker, each of which takes its time
_CUT = 0  # stream of random numbers, see also `mixture.SUBSTITUTE`
_ENDED = ("time limit", "worker died")


class Filled(NamedTuple):
    """What the search for one group gave: whether it has clips, and the bad videos tried before."""

    found: bool
    bad: list[BadClip]


class Memory:
    """Gives arrays, in the memory of earlier ones that nobody holds any more.

    Fresh memory has to be cleared, which takes longer than to copy a clip there.
    """

    def __init__(self):
        self._free: dict[int, list[bytearray]] = {}

    def allot(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of any content. Its memory is free again once it and its views are gone."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = bytearray(size)
        array = np.ndarray(shape, dtype, block)  # of no array: views of views refer to this one
        weakref.finalize(array, free.append, block).atexit = False
        return array


class Batches:
    """Batches that are being filled, by several threads.

    Clips go straight from where their worker left them to their place, for a copy of a batch costs
    as much as a tenth of decoding it.

    Args:
        batch_size: Clips of a batch.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._lock, self._memory = threading.Lock(), Memory()
        self._under_way: dict[int, dict[str, np.ndarray]] = {}

    def put(self, number: int, start: int, clips: dict[str, np.ndarray]) -> None:
        """Copies clips, arrays [r ...], to the places of batch `number` from `start` on."""
        with self._lock:
            if number not in self._under_way:
                self._under_way[number] = {
                    name: self._memory.allot((self._batch_size, *value.shape[1:]), value.dtype)
                    for name, value in clips.items()
                }
            batch = self._under_way[number]
        for name, value in clips.items():
            batch[name][start : start + len(value)] = value

    def take(self, number: int) -> dict[str, np.ndarray]:
        """The batch, once all of it is there."""
        with self._lock:
            return self._under_way.pop(number)


def load_safely(
    call: Callable[..., Any],
    record: manifest.VideoRecord,
    seeds: Sequence[Seed | None],
    seconds: float,
) -> dict[str, Any] | BadClip:
    """Makes clips in a worker; one that hangs or dies makes the video a bad one.

    Args:
        call: Runs the loading function in a worker, see `OrderedPool`.
        record: The row.
        seeds: See `LoadClip`.
        seconds: The time limit, to tell of it.
    """
    try:
        return call(record, seeds)
    except TimeLimitError:
        reason = f"{record.name}: took longer than {seconds:g} s"
        return BadClip(record.name, _ENDED[0], reason)
    except WorkerDiedError:
        return BadClip(record.name, _ENDED[1], f"{record.name}: its worker died twice")


class TrainDataset:
    """Endless shuffled batches; see `pipeline.make_train_dataset`."""

    def __init__(  # noqa: PLR0913, one caller, all by name
        self,
        mixture: Mixture,
        load: Callable,
        *,
        workers: int,
        prefetch: int,
        clip_seconds: float,
        seed: int,
        batch_size: int,
        repeats: int,
        process_index: int,
        process_count: int,
        drops: BadVideoTracker,
    ):
        if batch_size % repeats:
            raise UserError(
                f"the {batch_size} clips that a process makes of a batch must divide by "
                f"config.data.repeats={repeats}: change either"
            )
        self.batch_size, self.global_batch = batch_size, batch_size * process_count
        self.mixture, self.drops, self.repeats = mixture, drops, repeats
        self._first_clip = process_index * batch_size
        self._seed, self._load = seed, load
        self._workers, self._prefetch, self._seconds = workers, prefetch, clip_seconds

    def __iter__(self) -> "TrainIterator":
        return TrainIterator(self)

    @property
    def groups(self) -> int:
        """Groups of clips in a batch of this process."""
        return self.batch_size // self.repeats

    def describe(self, steps: int) -> str:
        """A table of the sources and of how often a run of so many steps sees them."""
        return self.mixture.table(steps * self.global_batch // self.repeats)

    def open_pool(self, done: int, batches: Batches) -> OrderedPool:
        """Starts to fill `batches` with this process's clips, but for the first `done` batches."""
        return open_pool(
            lambda number, call: self._fill(done * self.groups + number, call, batches),
            self._load,
            workers=self._workers,
            prefetch=-(-self._prefetch // self.repeats),
            seconds=self._seconds,
        )

    def _fill(self, number: int, call: Callable[..., Any], batches: Batches) -> Filled:
        """Makes group `number` of this process, trying other videos where the wanted one is bad."""
        batch, place = divmod(number, self.groups)
        first = batch * self.global_batch + self._first_clip + place * self.repeats
        bad, ended = [], 0
        for attempt in range(MAX_TRIES):
            record = self.mixture.choose(first // self.repeats, attempt)
            clips = range(first, first + self.repeats)
            seeds = tuple((self._seed, clip, attempt, _CUT) for clip in clips)
            made = load_safely(call, record, seeds, self._seconds)
            if not isinstance(made, BadClip):
                batches.put(batch, place * self.repeats, made)
                return Filled(True, bad)
            bad.append(made)
            ended += made.kind in _ENDED
            if self.drops.fails or ended == MAX_ENDED:
                break
        return Filled(False, bad)


class TrainIterator:
    """Iterates over a `TrainDataset`; close it when done."""

    def __init__(self, dataset: TrainDataset):
        self._dataset, self._done = dataset, 0
        self._batches = Batches(dataset.batch_size)
        self._pool = None

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._pool is None:
            self._pool = self._dataset.open_pool(self._done, self._batches)
        for _ in range(self._dataset.groups):
            self._take()
        self._done += 1
        return self._batches.take(self._done - 1)

    def _take(self) -> None:
        found, bad = self._pool.take()
        drops, repeats = self._dataset.drops, self._dataset.repeats
        for one in bad:
            drops.bad(one, repeats)
        if not found:
            raise drops.gave_up(len(bad))
        drops.good(repeats)

    def get_state(self) -> dict[str, int]:
        """Where it stands: clips delivered to all processes together."""
        return {"clips": self._done * self._dataset.global_batch}

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
        self._done, self._batches = batches, Batches(self._dataset.batch_size)

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
