"""Trains the image teacher of the synthetic world, a small SigLIP2, on frames and captions.

Because the demo must not download anything, its image teacher is trained on the world itself, with
the sigmoid loss of SigLIP (arXiv 2303.15343). In this world, a caption can match many images. A
label is therefore true if the image has every attribute that the caption mentions.

Shape key: b images, j captions, n words, d width, h w pixels, c channels.
"""

import contextlib
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax import loop
from invnext_jax.checkpointing import git_hash
from invnext_jax.errors import UserError
from invnext_jax.models import teachers
from invnext_jax.models.dot_general import check_dtype
from invnext_jax.models.siglip import SigLip
from invnext_jax.models.text_tower import TextTower
from invnext_jax.monitoring import reporter as reporter_lib
from invnext_jax.objectives.contrastive import sigmoid_loss
from invnext_jax.synthetic_world import tokenizer
from invnext_jax.synthetic_world.captions import (
    all_image_captions,
    image_captions,
    label_matrix,
)
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec
from invnext_jax.synthetic_world.teacher_evaluation import (
    Frames,
    class_embeddings,
    evaluate,
    normalize,
)
from invnext_jax.training import compilation, optimizer
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib
from invnext_jax.weights import export

WEIGHTS_FILE = "siglip2.safetensors"


def make_frames(spec: WorldSpec, clips: int) -> Frames:
    """Renders the first `clips` clips of a split in memory."""
    drawn = [render_clip(spec, index) for index in range(clips)]
    labels = {task: np.array([c.labels[task] for c in drawn], np.int32) for task in spec.classes}
    video_bthwc = np.stack([clip.video for clip in drawn])
    return Frames(video_bthwc, np.stack([clip.ids == 1 for clip in drawn]), labels)


def make_model(config: Any, vocabulary_size: int) -> SigLip:
    """Makes the model, which consists of a vision tower and a text tower."""
    return SigLip(
        vision=teachers.from_config(config),
        text=TextTower(
            words=vocabulary_size,
            length=config.text.length,
            width=config.text.width,
            depth=config.text.depth,
            heads=config.text.heads,
            mlp_width=config.text.mlp_width,
            out_width=config.teacher.width,
            dtype=jnp.dtype(config.dtype),
        ),
        scale=config.loss.scale,
        bias=config.loss.bias,
    )


def init_params(model: SigLip, length: int, key: jax.Array) -> Any:
    """Initializes the parameters, boxed with their logical axes. Called in jit or eval_shape.

    If all weights had a standard deviation of 0.02, all features of such a narrow model would be
    nearly equal for a thousand steps. The weights are therefore scaled so that the outputs of a
    layer have the scale of its inputs. The residual branches of the vision tower start small. Each
    token then first represents its own patch, and the pooling head learns to attend to the object.
    """
    size = model.vision.size
    inputs = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
    params = model.init(key, *inputs)["params"]

    def rescale(path, leaf):
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        if names[:2] == ["vision", "blocks"] and names[-2] in ("proj", "fc2"):
            return leaf * (0.01 / 0.02)
        if names[-1] == "kernel":
            return leaf / (0.02 * leaf.shape[-2] ** 0.5)
        if names[-1] in ("position", "probe", "embedding"):
            return leaf / (0.02 * leaf.shape[-1] ** 0.5)
        return leaf

    return jax.tree_util.tree_map_with_path(rescale, params)


def sample_batch(
    rng: np.random.Generator, frames: Frames, level: str, size: int, text: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Samples images and one matching caption per image.

    Args:
      rng: random number generator of this step.
      frames: the images to sample from.
      level: level of the world.
      size: number of pairs.
      text: caption -> word ids.

    Returns:
      A dict with `images` uint8 [b h w c], `words` int32 [b n] and `labels` bool [b b].
    """
    clips = rng.choice(len(frames.video_bthwc), size)
    times = rng.integers(frames.video_bthwc.shape[1], size=size)
    labels = {task: values[clips] for task, values in frames.labels.items()}
    captions = []
    for row in range(size):
        choices = image_captions(level, {k: v[row] for k, v in labels.items()})
        captions.append(choices[rng.integers(len(choices))])
    return {
        "images": frames.video_bthwc[clips, times],
        "words": np.stack([text[caption.text] for caption in captions]),
        "labels": label_matrix(labels, captions),
    }


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains both towers and writes the vision tower to `<workdir>/siglip2.safetensors`.

    The file also contains one text embedding per class, for zero-shot classification. A run takes
    minutes and writes no checkpoints, so an interrupted run starts from the beginning.

    Args:
      config: config of the run; see `configs/teacher.py`.
      workdir: folder for the weights and the metrics.

    Returns:
      The output of `evaluate` on the clips of the split "val".

    Raises:
      UserError: an option of the config has an invalid value.
      NonFiniteError: too many consecutive steps had a non-finite loss or gradient.
    """
    if config.total_steps < 1:
        raise UserError(f"config.total_steps={config.total_steps} must be at least 1")
    if config.teacher.weights:
        raise UserError(
            f"config.teacher.weights={config.teacher.weights!r} is not used, because this command "
            "trains the teacher from random values: remove the option"
        )
    check_dtype("config.dtype", config.dtype)
    workdir, data = Path(workdir), config.data
    mesh = mesh_lib.make_mesh(config.mesh)
    if config.batch_size % mesh_lib.batch_shards(mesh):
        raise UserError(
            f"config.batch_size={config.batch_size} must be divisible by the "
            f"{mesh_lib.batch_shards(mesh)} devices of the mesh axes data and fsdp"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    captions = all_image_captions(data.level)
    vocabulary = tokenizer.build_vocabulary(captions)
    words_jn = tokenizer.tokenize(captions, vocabulary, config.text.length)
    model = make_model(config, len(vocabulary))
    frames = make_frames(_spec(config, "train"), data.clips)
    text = {caption.text: words_n for caption, words_n in zip(captions, words_jn, strict=True)}
    params = _optimize(config, workdir, mesh, model, frames, text)
    text_jd = jax.jit(model.apply, static_argnames="method")(
        {"params": params}, words_jn, method="encode_text"
    )
    spec = _spec(config, "val")
    prompts = class_embeddings(captions, np.asarray(text_jd), spec.classes)
    measured = evaluate(model.vision, params["vision"], make_frames(spec, data.val_clips), prompts)
    about = {
        "command": f"python launch/train_teacher.py --config=configs/teacher.py:{config.variant}",
        "config": config.to_dict(),
        "git": git_hash.read_git_hash(),
        "measured": measured,
    }
    parts = {"teacher": params["vision"], "prompts": prompts}
    export.write_export(workdir / WEIGHTS_FILE, parts, about)
    return measured


def _spec(config: Any, split: str) -> WorldSpec:
    data = config.data
    return WorldSpec(
        level=data.level,
        size=config.teacher.size,
        frames=data.frames,
        seed=config.seed,
        split=split,
        object_size=data.object_size,
        clutter=data.clutter,
    )


class _LogSteps(loop.Callbacks):
    """Adds the metrics of each step to a reporter."""

    def __init__(self, reporter: reporter_lib.Reporter):
        self._reporter = reporter

    def after_step(self, number, state, metrics, diagnostics):
        del state
        self._reporter.add_step(number, metrics, diagnostics, {"dropped_videos": 0})


def _optimize(
    config: Any,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    model: SigLip,
    frames: Frames,
    text: dict[str, np.ndarray],
) -> Any:
    """Trains both towers and returns their parameters."""
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    schedule = mesh_lib.replicate(schedule, mesh)
    tx = optimizer.make_optimizer(config.optimizer)
    init_fn = functools.partial(init_params, model, config.text.length)
    root_key = jax.device_put(jax.random.key(config.seed), mesh_lib.replicated(mesh))
    abstract = state_lib.abstract_state(init_fn, tx, mesh)
    state = state_lib.init_state(init_fn, tx, abstract, root_key)

    def loss_fn(params, frozen, batch, key):
        del frozen, key
        logits_bj = model.apply({"params": params}, normalize(batch["images"]), batch["words"])
        return sigmoid_loss(logits_bj, batch["labels"]), {}

    def make_batch(step):
        rng = np.random.default_rng((config.seed, step))
        batch = sample_batch(rng, frames, config.data.level, config.batch_size, text)
        return mesh_lib.shard_batch(batch, mesh)

    step_fn = step_lib.make_train_step(loss_fn, tx)
    train_step = compilation.compile_step(step_fn, state, {}, make_batch(1), root_key, schedule)
    reporter = reporter_lib.Reporter(config, workdir, 0, mesh)
    with contextlib.closing(reporter):
        reporter.start()
        state = loop.run_steps(
            lambda state, batch: train_step(state, {}, batch, root_key, schedule),
            state,
            map(make_batch, itertools.count(1)),
            total_steps=config.total_steps,
            callbacks=_LogSteps(reporter),
        )
        reporter.flush()
    return jax.device_get(state.params)
