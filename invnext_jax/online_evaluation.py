"""Evaluation by nearest neighbors during pretraining, on a small set of videos.

The clips are read once, before the first step, and stay in host memory. The features are the mean
tokens of the encoder that is being trained. Each clip is classified by its nearest neighbors among
the other clips (leave-one-out). Without labels, each video is divided into two halves, and the task
is to retrieve the other half of the same video. A low rank of the features indicates a collapse.

Shape key: r parts of a video, b clips of a batch, n clips, t frames, h w c pixels, d width.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, sources
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.class_names import compare_manifests
from invnext_jax.data.copies import COPIES_SECONDS, find_copies
from invnext_jax.data.held_out import find_shared_manifest, held_out_rows, training_rows
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError, check_minimums
from invnext_jax.models import attention
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.layers import l2_normalize
from invnext_jax.models.patches import normalize
from invnext_jax.monitoring.evaluation_metrics import SINCE_STEP
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.multihost import consensus
from invnext_jax.multihost.distributed import log_on_process_0
from invnext_jax.objectives.neighbor_scores import RANK, describe_neighbors, score_tasks
from invnext_jax.training import mesh as mesh_lib

CLIPS_PER_SHARD = 8  # clips per shard of the batch in a forward pass
Pause = Callable[[Any], contextlib.AbstractContextManager[Any]]
RETRIEVAL = "retrieval"  # name of the task if there are no labels


def check_config(config: Any) -> None:
    """Checks `config.eval`.

    Raises:
      UserError: an option is out of range, or has no effect.
    """
    check_minimums(config, {"eval.every_steps": 0, "eval.videos": 2, "eval.neighbors": 1})
    if config.eval.every_steps and not config.eval.manifest and not config.data.held_out:
        raise UserError(
            f"config.eval.every_steps={config.eval.every_steps} needs videos: set "
            "config.eval.manifest to a CSV file, preferably with label_<task> columns, or "
            "config.data.held_out to a number of videos that are not trained on"
        )


def unused_options(config: Any) -> dict[str, str]:
    """Returns the options without effect; see `config_checks.unused_options`."""
    if config.eval.every_steps:
        return {}
    reason = "config.eval.every_steps is 0: set it to a number of steps"
    return {f"eval.{name}": reason for name in ("manifest", "videos", "neighbors")}


class OnlineEvaluation:
    """Evaluates the encoder of a run before the first step, at regular steps and after the last.

    The accuracies are fractions in [0, 1]: "eval/knn_<task>" for each label column, or
    "eval/retrieval" if the manifest has none. "eval/feature_rank" is the effective rank of the
    features. "eval/since_step" is the step after which the evaluated videos are used, if a resumed
    run evaluates other videos than before. All processes read all videos, and each process encodes
    the clips of its devices.

    Attributes:
      metrics: names of the metrics.
    """

    def __init__(
        self,
        config: Any,
        mesh: Mesh,
        params: Any,
        training: Manifest,
        evaluated: Manifest | None,
        since_step: int = 0,
    ):
        """Reads the clips and compiles the forward pass.

        Args:
          config: the run's config, with `config.eval.every_steps` above 0.
          mesh: the run's mesh.
          params: parameters of the encoder on the devices, or their shapes and shardings.
          training: the rows of `config.data.manifest`.
          evaluated: the rows of `config.eval.manifest`; None if it is empty.
          since_step: the step after which these videos are evaluated.

        Raises:
          UserError: the manifest is invalid, or no video can be read.
        """
        self._config, self._mesh = config, mesh
        with consensus.all_hosts_agree("reading the videos of config.eval"):
            self._manifest, self._rows, labels = _open_videos(config, training, evaluated)
            self._clips = len(next(iter(labels.values())))
            self._chunk = CLIPS_PER_SHARD * mesh_lib.batch_shards(mesh)
            self._batches = list(self._read_batches())
        if RETRIEVAL not in labels and (note := describe_neighbors(config.eval.neighbors, labels)):
            log_on_process_0(note)
        self._constants = {SINCE_STEP: np.float32(since_step)} if since_step else {}
        names = (f"eval/{_metric(task)}" for task in (*labels, RANK))
        self.metrics = (*names, *self._constants)
        self._initial: dict[str, jax.Array] = {}
        self._labels = mesh_lib.replicate(labels, mesh)
        encode = functools.partial(_encode, encoder_model.from_config(config))
        replicated = mesh_lib.replicated(mesh)
        with mesh_lib.mesh_rules(mesh), attention.kernel(config.attention):
            encode = jax.jit(encode, out_shardings=replicated)
            self._encode = encode.lower(params, self._put(self._batches[0])).compile()
        score = functools.partial(
            score_tasks,
            classes={task: int(label_n.max()) + 1 for task, label_n in labels.items()},
            neighbors=1 if RETRIEVAL in labels else config.eval.neighbors,
        )
        self._score = jax.jit(score, out_shardings=replicated)

    def before_step(self, step: int, params: Any, pause: Pause = contextlib.nullcontext) -> None:
        """Evaluates the parameters before step 1. Their metrics are those of step 1.

        Args:
          step: number of the next step, from 1.
          params: parameters of the encoder, on the devices.
          pause: makes the context of an evaluation from `params`; see `Reporter.pause`.
        """
        if step == 1:
            with pause(params):
                self._initial = self.evaluate(params)

    def after_step(
        self, step: int, params: Any, pause: Pause = contextlib.nullcontext
    ) -> dict[str, jax.Array]:
        """Returns the metrics of step `step`, or {} if no evaluation is due.

        Args:
          step: number of completed steps, from 1.
          params: parameters of the encoder, on the devices.
          pause: makes the context of an evaluation from `params`; see `Reporter.pause`.
        """
        if step == self._config.total_steps or step % self._config.eval.every_steps == 0:
            with pause(params):
                return self.evaluate(params)
        return self._initial if step == 1 else {}

    def evaluate(self, params: Any) -> dict[str, jax.Array]:
        """Returns a dict from the name of each metric to a float32 scalar on the devices.

        Args:
          params: parameters of the encoder, on the devices.
        """
        jax.block_until_ready(params)  # CPU devices must not run two computations at the same time
        parts = []
        for batch in self._batches:
            parts.append(self._encode(params, self._put(batch)))
            jax.block_until_ready(parts[-1])  # limits the number of clips in device memory
        scores = jax.block_until_ready(self._score(parts, self._labels))
        return {f"eval/{_metric(task)}": x for task, x in scores.items()} | self._constants

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return mesh_lib.shard_batch(batch, self._mesh, self._chunk)

    def _read_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches of the clips that this process encodes; clip i has position i.

        `valid` is False at the positions of videos that cannot be read.
        """
        config, total = self._config.data, -(-self._clips // self._chunk) * self._chunk
        own_b = mesh_lib.batch_positions(self._mesh, self._chunk)
        places = np.concatenate([np.array(own_b) + s for s in range(0, total, self._chunk)])
        shape = (len(places), config.frames, config.size, config.size, 3)
        video_bthwc, valid_b = np.zeros(shape, np.uint8), np.zeros(len(places), bool)
        slot = {int(place): number for number, place in enumerate(places)}
        halves = self._clips // len(self._rows)
        number = {int(row): number for number, row in enumerate(self._rows)}
        for row, video_thwc in _read_videos(config, self._manifest, self._rows, halves):
            clips_rthwc = rearrange(video_thwc, "(r t) h w c -> r t h w c", r=halves)
            for place, part_thwc in enumerate(clips_rthwc, halves * number[row]):
                if place in slot:
                    video_bthwc[slot[place]], valid_b[slot[place]] = part_thwc, True
        for s in range(0, len(places), len(own_b)):
            part = slice(s, s + len(own_b))
            yield {"video": video_bthwc[part], "valid": valid_b[part]}


def _metric(task: str) -> str:
    return task if task in (RETRIEVAL, RANK) else f"knn_{task}"


def _open_videos(
    config: Any, training: Manifest, evaluated: Manifest | None
) -> tuple[Manifest, np.ndarray, dict[str, np.ndarray]]:
    """Returns the manifest of the evaluated videos, and the rows and labels of `_select_rows`.

    The manifest is `evaluated`, or `training` if that is None. Raises `UserError` if it is a list
    of manifests with contradicting class names.
    """
    manifest = training if evaluated is None else evaluated
    rows, labels = _select_rows(config, manifest)
    if left_out := manifest.labels.keys() - {manifest_lib.LABEL_PREFIX + task for task in labels}:
        names = ", ".join(sorted(left_out))
        log_on_process_0(f"note: the evaluated videos have less than two classes: {names}")
    files = manifest_lib.list_manifests(config.eval.manifest or config.data.manifest)
    if len(files) > 1:
        compare_manifests(files, [*labels], AccessRules.from_config(config.data))
    if evaluated is not None:
        _log_videos(config, manifest, rows, training)
    return manifest, rows, labels


def read_manifest(config: Any) -> Manifest | None:
    """Reads `config.eval.manifest`; returns None if it is empty or the run evaluates nothing.

    Raises:
      UserError: the manifest is invalid, or is also a training manifest.
    """
    if not config.eval.every_steps or not config.eval.manifest:
        return None
    rules = AccessRules.from_config(config.data)
    manifest = manifest_lib.read_manifest(config.eval.manifest, rules)
    if name := find_shared_manifest(config.eval.manifest, config.data.manifest):
        raise UserError(
            f"config.eval.manifest={name} is also in config.data.manifest: use a manifest of "
            "other videos, or leave it empty and set config.data.held_out"
        )
    return manifest


def _select_rows(config: Any, manifest: Manifest) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the evaluated rows of the manifest, ascending, and the labels of the clips by task.

    If there are more than `config.eval.videos` rows, a random subset is selected, which does not
    depend on the seed of the run. Without labels, each row has two clips, and their label is the
    index of the row.
    """
    rows = np.arange(len(manifest))
    if not config.eval.manifest:
        rows = held_out_rows(manifest, config.data.held_out)
    if len(rows) > config.eval.videos:
        chosen = np.random.default_rng(0).choice(len(rows), config.eval.videos, replace=False)
        rows = rows[np.sort(chosen)]
    labels = {
        name.removeprefix(manifest_lib.LABEL_PREFIX): label_n[rows]
        for name, label_n in manifest.labels.items()
    }
    labels = {t: label_n for t, label_n in labels.items() if len(set(label_n[label_n >= 0])) > 1}
    return rows, labels or {RETRIEVAL: np.repeat(np.arange(len(rows), dtype=np.int32), 2)}


def _log_videos(config: Any, manifest: Manifest, rows: np.ndarray, training: Manifest) -> None:
    """Logs small worlds in `config.eval.manifest`, and its rows that are training videos."""
    if jax.process_index() != 0:
        return
    for sentence in sources.describe_worlds(config.data, manifest.file):
        log_on_process_0(sentence)
    trained = training_rows(training, config.data.held_out)
    if copies := find_copies(training, manifest, trained, rows, seconds=COPIES_SECONDS):
        log_on_process_0(
            f"note: {len(copies)} of {len(rows)} evaluated videos in config.eval.manifest are also "
            "training videos (same name or content), so the metrics eval/* may be too high"
        )


def _read_videos(
    data_config: Any, manifest: Manifest, rows: np.ndarray, clips: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the row and the frames of each readable video: uint8 [clips * t, h, w, 3]."""
    data = ml_collections.ConfigDict(data_config.to_dict())
    data.frames *= clips
    if clips > 1:
        data.update(sampling="sparse", by_source={})
    dataset = pipeline.make_eval_dataset(data, manifest=manifest, rows=rows, batch_size=1)
    quiet = jax.process_index() != 0
    with ProgressMeter(len(rows), "video", quiet=quiet) as meter:
        for done, batch in enumerate(dataset, 1):
            yield int(batch["index"][0]), batch["video"][0]
            meter.update(done, "read for config.eval")
    if not dataset.bad_videos.delivered:
        raise dataset.bad_videos.no_good_video_error()


def _encode(encoder: Any, params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Returns L2-normalized features, float32 [b d], and whether their videos were read [b]."""
    tokens_bnd = encoder.apply({"params": params}, normalize(batch["video"])).tokens_bnd
    x_bd = jnp.mean(tokens_bnd[:, encoder.class_tokens :], axis=1)
    return l2_normalize(x_bd, min_length=1e-12), batch["valid"]
