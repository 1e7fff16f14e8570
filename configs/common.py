"""All options of a pretraining run with their defaults, and the sizes of the variants.

This file is longer than 300 lines because it contains all defaults. The comment next to a field is
its documentation: `docs/scripts/generate_options.py` copies it to docs/options.md. Durations are in
steps, unless their names say otherwise. Do not compute one field from another here: config files
run before command-line overrides are applied. `training/recipe.py` computes steps and rates.
"""

import ml_collections

VARIANTS = ("tiny", "base", "large", "1b")

# Encoder sizes, from section 4 of the paper and the released model definitions.
ENCODERS = {
    "base": {
        "width": 768,  # Width of the tokens.
        "depth": 12,  # Number of layers.
        "heads": 12,  # Attention heads; must divide the width.
        "mlp_width": 3072,  # Width of the hidden layer of each MLP.
        # Drop-path rate of the last layer. The rate increases linearly from 0 at the first layer.
        "drop_path": 0.1,
    },
    "tiny": {"width": 64, "depth": 4, "heads": 2, "mlp_width": 256, "drop_path": 0.0},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "drop_path": 0.2},
    "1b": {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144, "drop_path": 0.2},
}

# Published image teachers. The tapped layers of all teachers cover the same fraction of the depth
# as those of the giant teacher.
TEACHERS = {
    "siglip2_giant": {
        "kind": "siglip2",  # Architecture: "siglip2", "clip" or "dinov2".
        "width": 1536,  # Width of the tokens.
        "depth": 40,  # Number of layers.
        "heads": 16,  # Attention heads.
        # Width of the hidden layer of each MLP. If `teacher.gated`, width of each of its halves.
        "mlp_width": 6144,
        # Activation of the MLPs. clip: "quick_gelu" or "gelu". The other kinds have only one.
        "activation": "gelu_tanh",
        "registers": 0,  # Register tokens, for dinov2 only: 0 or 4.
        "gated": False,  # Whether the MLPs are SwiGLU, for dinov2 only.
        "patch": 16,  # Side of a patch in pixels.
        # Side in pixels of the teacher's input images in this run; must be divisible by
        # `teacher.patch`.
        "size": 256,
        "train_size": 256,  # Image side in pixels for which its position table was trained.
        # Distance in layers between tapped layers, starting from the last layer.
        "tap_interval": 3.33,
    },
    "tiny": {  # the teacher of the synthetic world, included in the package
        "kind": "siglip2",
        "width": 96,
        "depth": 4,
        "heads": 4,
        "mlp_width": 384,
        "activation": "gelu_tanh",
        "registers": 0,
        "gated": False,
        "patch": 8,
        "size": 32,
        "train_size": 32,
        "tap_interval": 1.0,
    },
}
TEACHERS["siglip2_so400m"] = {
    **TEACHERS["siglip2_giant"],
    **{"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "tap_interval": 2.25},
}
_LARGE = {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "tap_interval": 2.0}
_LARGE |= {"registers": 0, "gated": False}
_PATCH_16 = {"patch": 16, "size": 256, "train_size": 256}
_PATCH_14 = {"patch": 14, "size": 224}
TEACHERS |= {
    "siglip2_large": {"kind": "siglip2", **_LARGE, **_PATCH_16, "activation": "gelu_tanh"},
    "clip_large": {
        **{"kind": "clip", **_LARGE, **_PATCH_14},
        **{"train_size": 224, "activation": "quick_gelu"},
    },
    "dinov2_large": {
        **{"kind": "dinov2", **_LARGE, **_PATCH_14},
        **{"train_size": 518, "activation": "gelu"},
    },
}


def defaults() -> ml_collections.ConfigDict:
    """Returns the options that both stages share, at the sizes of the Base model."""
    config = ml_collections.ConfigDict()
    # Name of the stage: "stage1" or "stage2". The config file sets it.
    config.stage = ""
    # Size of the models: "tiny", "base", "large" or "1b". Set it with the config file, as in
    # `--config=configs/stage1.py:large`.
    config.variant = "base"
    # Random seed for initial values, data order, augmentation, masks and noise.
    config.seed = 0
    # Length of the run: number of clips divided by the number of videos in the manifests.
    config.epochs = 0.0
    # Length of the run in steps. A resumed run continues to this step. -1: computed from `epochs`.
    config.total_steps = -1
    # Clips per step, summed over all devices and hosts.
    config.batch_size = 2048
    # Workdir of a run, or an exported .safetensors file, whose parameters initialize this run.
    # Stage 2 requires a Stage 1 run. "": start from random values.
    config.init_from = ""
    # Whether the sizes of the models and of the clips are those of `init_from`. Sizes that the
    # command line sets are kept.
    config.init_sizes = False
    # Parts of the model to read from `init_from`, such as ("encoder", "pool"). (): all parts that
    # this stage also has.
    config.init_parts = ()
    # Whether `init_from` may be a run that has not reached its last step.
    config.init_from_unfinished = False
    # Gradient accumulation: number of microbatches that a batch is split into. They run
    # sequentially, each with its own random numbers. 1: the whole batch at once.
    config.accumulate = 1
    config.ema = ml_collections.ConfigDict(
        {
            # Decay per step of the exponential moving average of all parameters, which is saved in
            # the checkpoints. 0: no average.
            "decay": 0.0,
        }
    )
    # (first, last): write a profiler trace of steps first + 1 to last to `<workdir>/profile`.
    # (): no trace.
    config.profile_steps = ()
    # Dtype of the matrix products: "float32" or "bfloat16". Parameters, norms and losses are always
    # float32. float32 products use the highest precision, which is slow on accelerators.
    config.dtype = "bfloat16"
    # Quantization of the linear layers of the image teacher and of Stage 2's target: "": none;
    # "int8" or "float8" (e4m3); "auto": float8 on GPUs since compute capability 8.9, int8 on TPUs
    # v5e, v5p and v6e, none on other devices. A resumed run keeps the format of its first device.
    # Quantization changes the method.
    config.quantize_frozen = ""
    # Attention kernel: "cudnn" (GPU), "splash" (TPU), "blockwise" (plain XLA, never stores all
    # logits), "naive" (plain XLA, stores all logits), or "auto": the platform's fused kernel if it
    # supports the inputs, else plain XLA, in blocks if there are many logits.
    config.attention = "auto"
    # What the mesh axis "sequence" splits in attention: "gather": the queries; each device gathers
    # the keys and values of all tokens. "all_to_all": the heads; devices exchange queries, keys and
    # values (DeepSpeed Ulysses), which sends fewer bytes if the axis has more than two devices. See
    # [scaling.md](scaling.md#long-videos).
    config.sequence_attention = "gather"
    # Factor on the initial kernels (standard deviation 0.02), except those of the patch embedding
    # and the decoder.
    config.init_gain = 1.0
    # Activations that the backward pass recomputes to save memory: "none"; "dots": all except the
    # outputs of matrix products; "full": all.
    config.remat = "none"
    # Layers per iteration of the scan over layers. Larger values take longer to compile.
    config.scan_unroll = 1
    config.data = data()
    config.encoder = ml_collections.ConfigDict(
        {
            **ENCODERS["base"],
            "patch": 14,  # Side of a patch in pixels.
            # Image side in pixels of the position tables. They are interpolated for other sizes.
            "size": 224,
            # Number of frames of the position tables. They are interpolated for other numbers.
            "frames": 16,
            "class_tokens": 4,  # Number of class tokens.
            "layer_scale": 1e-5,  # Initial value of the layer scale.
            "pool_heads": 16,  # Attention heads of the attention pool.
            "pool_width": 768,  # Width of the pooled feature.
        }
    )
    # The predictor predicts the latents of the masked positions.
    config.predictor = ml_collections.ConfigDict(
        {
            "kind": "modernbert",  # Architecture: "modernbert", "vit" or "vjepa".
            # .safetensors file of the text model that initializes a modernbert. "": random values.
            "weights": "",
            "width": 1024,  # Width of the tokens.
            # Number of layers. A modernbert predictor uses the last layers of the text model.
            "depth": 5,
            "heads": 16,  # Attention heads; must divide the width.
            "mlp_width": 2624,  # Width of the hidden layer of each MLP.
            # For modernbert: number of positions that a local layer attends to, half on each side.
            "window": 128,
            # For modernbert: index of the last layer in the text model. Layers whose index is
            # divisible by 3 use global attention.
            "last_layer": 27,
        }
    )
    # The pixel decoder. It is built only if `loss.pixels` is not 0.
    config.decoder = ml_collections.ConfigDict(
        {
            "kind": "diffusion",  # Architecture: "diffusion", "linear" or "mlp".
            "depth": 6,  # Number of blocks, or number of layers of an mlp.
            "width": 1536,  # Width of the hidden layers.
            "noise_draws": 1,  # Noised copies of each predicted patch per step.
            # Number of parts that the patches are split into. The parts are decoded sequentially to
            # save memory.
            "chunks": 1,
            # Dtype of the decoder's matrix products: "float32", or "bfloat16", which is much faster
            # on accelerators.
            "dtype": "float32",
        }
    )
    # The frozen image teacher. It is read only if a loss, the mask or the target needs it.
    config.teacher = ml_collections.ConfigDict(
        {
            # .safetensors file of the image tower; launch/import_weights.py writes it. "assets":
            # the teacher of the synthetic world.
            "weights": "",
            "taps": 6,  # Number of intermediate features that the student aligns with.
            # Whether the patch grids of teacher and encoder may differ in size. The teacher's
            # features and attention are then interpolated. Smaller images cost less.
            "resample": False,
            # Fraction of the frames of each clip that the teacher encodes, rounded to whole frames.
            # The frames are drawn at random in each step. Only their tokens are aligned, and the
            # semantic mask of another frame uses the attention of the nearest of them. Values below
            # 1 change the method.
            "frames_share": 1.0,
            # Local folder in which the teacher's outputs for each clip are stored and read again in
            # later epochs and by later runs with the same teacher and videos. Needs
            # `data.augment=False`. "": the teacher runs in each step. See
            # [performance.md](performance.md#stored-outputs-of-the-teacher).
            "cache": "",
            **TEACHERS["siglip2_giant"],
        }
    )
    config.mask = ml_collections.ConfigDict(
        {
            # How masks are drawn: "semantic" (by the teacher's attention), "multi_block", "tube" or
            # "random".
            "kind": "semantic",
            # Fraction of the patches that is masked, for all kinds except multi_block, rounded down
            # to whole patches of a frame. The paper's text says 0.8.
            "ratio": 0.75,
            # Fraction of the masked patches that is predicted. The patches are drawn at random in
            # each step. Values below 1 change the method.
            "predicted": 1.0,
            # Number of frames whose visible tokens the predictor gets, drawn at random for each
            # clip and step. 0: all frames. Other values change the method: tokens of the drawn
            # frames then have to describe the other frames.
            "context_frames": 0,
            # For multi_block: pairs (number of blocks, area of a block as a fraction of the frame).
            # Each pair gives one mask. Stage 1 uses only the first one.
            "blocks": ((8, 0.15), (2, 0.7)),
            # For multi_block: fraction of the patches that stays visible, one for each entry of
            # `mask.blocks`.
            "visible": (0.38, 0.19),
            # For multi_block: smallest and largest height / width of the blocks.
            "aspect": (0.75, 1.5),
            # For multi_block: how `mask.visible` is reached. "scale": the blocks are enlarged or
            # shrunk. "cut": visible tokens are dropped in raster order, as in the released scripts
            # (with 0.196 and 0.08 for `mask.visible`).
            "fit": "scale",
            # For multi_block: fraction of the frames, from the start of the clip, that can have
            # visible patches. Later frames are masked completely, as with V-JEPA's option of this
            # name. Values below 1 change the method.
            "max_temporal_keep": 1.0,
        }
    )
    # AdamW with linear warm-up and cosine decay.
    config.optimizer = ml_collections.ConfigDict(
        {
            # Peak learning rate for a batch of 256 clips. Other batches scale it linearly.
            "base_learning_rate": 0.0,
            # Learning rate at the last step for a batch of 256 clips. Other batches scale it
            # linearly.
            "base_min_learning_rate": 0.0,
            # Linear warm-up from 0, as a part of `epochs`.
            "warmup_epochs": 0.0,
            # Peak learning rate. -1: computed from `optimizer.base_learning_rate`.
            "learning_rate": -1.0,
            # Learning rate at the last step. -1: computed from `optimizer.base_min_learning_rate`.
            "min_learning_rate": -1.0,
            # Steps of linear warm-up from 0. -1: computed from `optimizer.warmup_epochs`.
            "warmup_steps": -1,
            "betas": (0.9, 0.98),  # Decay rates of the two moments.
            "eps": 1e-6,  # Added to the root of the second moment.
            # Weight decay of all parameters except biases, norm scales, class tokens and the
            # position tables of encoder and alignment heads.
            "weight_decay": 0.05,
            "clip_norm": 5.0,  # Gradients with a larger norm are scaled down. 0: no clipping.
            # Top-level parameter groups that are not trained, such as ("pool",). A value on the
            # command line replaces the default of the stage.
            "frozen": (),
        }
    )
    # Sizes of the axes of the device mesh. One of them may be -1: all remaining devices. See
    # [scaling.md](scaling.md).
    config.mesh = ml_collections.ConfigDict(
        {
            "data": -1,  # Splits the batch.
            "fsdp": 1,  # Splits the batch, the parameters and the optimizer state.
            "tensor": 1,  # Splits attention heads and MLPs.
            "sequence": 1,  # Splits the tokens of long sequences.
        }
    )
    # When checkpoints are saved and which are kept. See [checkpoints.md](checkpoints.md).
    config.checkpoint = ml_collections.ConfigDict(
        {
            "every_steps": 1000,  # Steps between checkpoints.
            # A checkpoint is also saved this many minutes after the previous one. 0: never.
            "every_minutes": 15.0,
            "keep_last": 2,  # Number of the newest checkpoints to keep.
            "keep_every_steps": 0,  # Keep checkpoints at multiples of this step. 0: none.
            "keep_best": 0,  # Number of checkpoints with the best scores to keep in addition.
            # A metric of the losses, the diagnostics or `eval`. Its mean over the steps logged
            # since the previous checkpoint is the score of a checkpoint.
            "best_metric": "loss",
            "best_mode": "min",  # Whether a low ("min") or a high ("max") score is better.
        }
    )
    # Evaluation of the encoder during the run, by nearest neighbors. The metrics "eval/knn_<task>"
    # are logged, and can be `checkpoint.best_metric`. See
    # [evaluation.md](evaluation/evaluation.md).
    config.eval = ml_collections.ConfigDict(
        {
            "every_steps": 0,  # Steps between evaluations. 0: none.
            # CSV file of videos, preferably with label_<task> columns. Without labels, each half of
            # a video is used to retrieve the other half: "eval/retrieval".
            "manifest": "",
            # Maximum number of videos. If the manifest has more, a random subset is used. The clips
            # stay in the memory of each host: 2.4 MB for 16 frames of 224 x 224 pixels.
            "videos": 512,
            "neighbors": 10,  # Number of nearest neighbors that vote.
        }
    )
    config.log = ml_collections.ConfigDict(
        {
            "every_steps": 50,  # Steps between two records of metrics.
            # Steps between diagnostics: gradient norms of each loss, and the spread and rank of
            # features. 0: none.
            "diagnostics_every_steps": 500,
            # Largest number of consecutive steps with a non-finite loss or gradient. These steps
            # are skipped; one more aborts the run.
            "max_nonfinite_steps": 20,
            # The log warns of collapse if the spread or the effective rank of features (metrics
            # whose names end in `_std` or `_rank`) falls below this fraction of its largest value
            # so far. 0: never.
            "collapse_ratio": 0.1,
            # Minutes without a step after which the stack traces of all threads are logged. The
            # limit for the first step, which includes compilation, is 6 times as long. 0: never.
            "watchdog_minutes": 15.0,
            # Whether to measure the speed of a large matrix product when the run starts, on GPUs
            # and CPUs (takes less than a second). The log then shows the speed of training as a
            # fraction of this speed.
            "measure_ceiling": True,
            # Number of clips whose masks, reconstructions and features are written to TensorBoard
            # for each checkpoint. A process with the lowest priority draws them on the CPU of
            # process 0. 0: none.
            "strips": 0,
            # Package with the interface of wandb that also gets the metrics, from process 0:
            # "wandb" or "trackio", or with a project "trackio:my-project". "": none.
            "tracker": "",
        }
    )
    return config


def data() -> ml_collections.ConfigDict:
    """Returns the options of the input pipeline. See [data.md](data.md)."""
    return ml_collections.ConfigDict(
        {
            # CSV file of videos, a folder that contains one, a generated world such as
            # `world:simple/train?videos=2000`, or several of these, separated by commas.
            "manifest": "",
            # Protocols of remote files that manifests may refer to in addition to file, gs, s3 and
            # https, such as ("http",). See [security.md](security.md).
            "protocols": (),
            # Whether a manifest on a server or in a bucket may refer to files elsewhere, including
            # on this machine.
            "other_hosts": False,
            # Number of videos that are not trained on. They are drawn at random from the manifests.
            # If `eval.manifest` is empty, `eval` evaluates on them.
            "held_out": 0,
            # Sampling weight of each source, ((source, weight), ...). (): all videos have the same
            # weight.
            "weights": (),
            # How the videos are shuffled in each epoch. 0: globally. N: the files are shuffled, and
            # their rows in blocks of at most N, so that only the shards of one block are read at a
            # time. See [data.md](data.md#order).
            "shuffle_block_size": 0,
            "repeats": 1,  # Number of clips cut from a video each time it is decoded.
            # Whether frames and crops are drawn at random, and clips are flipped and their colors
            # changed. False: each video always gives the same clip, which is that of evaluations
            # (the middle of all random ranges, center crop).
            "augment": True,
            "frames": 16,  # Frames per clip.
            # How frames are chosen. "sparse": one frame from each of `data.frames` equal segments
            # of the video. "dense": frames at equal distances.
            "sampling": "sparse",
            # For dense sampling: smallest and largest distance in frames, drawn for each clip. If
            # a clip exceeds the video, the last frame is repeated.
            "stride": (4, 4),
            "size": 224,  # Side of a clip in pixels; must be divisible by `encoder.patch`.
            # Crops are defined on the frame scaled down to this short side, in pixels. Smaller
            # frames are not scaled up, but their crops are enlarged to `data.size`.
            "short_side": 256,
            # How crops are drawn: "multi_scale" or "random_resized".
            "crop": "multi_scale",
            # For multi_scale: possible sides of a crop, as fractions of the short side.
            "crop_scales": (1.0, 0.875, 0.75, 0.66),
            # For random_resized: smallest and largest area of a crop, as a fraction of the frame.
            "crop_area": (0.3, 1.0),
            # For random_resized: smallest and largest width / height of a crop.
            "crop_aspect": (0.75, 4 / 3),
            # Strength of random changes of brightness, contrast, saturation (relative) and hue (as
            # a fraction of the color circle, at most 0.5). 0: none.
            "jitter": (0.0, 0.0, 0.0, 0.0),
            # Whether half of the clips are mirrored left to right.
            "flip": True,
            # Values of sampling, stride, crop, crop_scales, crop_area, crop_aspect, jitter and flip
            # that replace the above for the videos of one source. "ssv2" applies to all spellings
            # of Something-Something.
            "by_source": {
                "ssv2": {"flip": False},  # Its labels depend on left and right.
                "world": {"flip": False},  # Its labels depend on left and right.
            },
            # Number of decoding processes with one thread each. -1: one per core, divided among the
            # processes of the run that share the cores. 0: threads of the training process, in
            # which a clip that hangs blocks its thread forever.
            "workers": -1,
            "prefetch": 4,  # Number of clips prefetched per worker.
            # Time limit in seconds for decoding the clips of one video, and for each read of its
            # file. After it, the worker is killed and replaced.
            "clip_seconds": 60.0,
            # What to do with a video that cannot be decoded. "drop": replace it with another clip.
            # "fail": end the run.
            "on_bad": "drop",
            # Fraction of bad clips above which the run ends, after at least 100 clips.
            "max_bad_share": 0.5,
        }
    )


def apply_variant(config: ml_collections.ConfigDict, variant: str) -> None:
    """Sets the sizes of `variant` in place. The tiny variant fits the synthetic world.

    Raises:
      ValueError: `variant` is not one of `VARIANTS`.
    """
    variant = variant or "base"
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config.variant = variant
    config.encoder.update(ENCODERS[variant])
    if variant == "tiny":
        _apply_tiny(config)


def apply_teacher(config: ml_collections.ConfigDict, name: str) -> None:
    """Sets the architecture of the image teacher `name` of `TEACHERS` in place."""
    config.teacher.update(TEACHERS[name])
    if config.variant == "large":  # half the distance between taps, as in the released scripts
        interval = config.teacher.tap_interval
        config.teacher.tap_interval = 1.67 if name == "siglip2_giant" else interval / 2


def _apply_tiny(config: ml_collections.ConfigDict) -> None:
    config.batch_size = 32
    config.dtype = "float32"  # faster than bfloat16 on CPUs
    config.data.update(
        manifest="data/world/train.csv",
        frames=8,
        size=32,
        short_side=32,
        crop_scales=(1.0,),  # a crop would cut the small shapes and change their speed
        workers=1,
        prefetch=32,
    )
    # The initial standard deviation of 0.02 is intended for width 768. This factor gives the
    # same gain per layer at width 64.
    config.init_gain = (768 / 64) ** 0.5
    # With layer scale 1e-5, the encoder would stay close to the identity for hundreds of steps.
    config.encoder.update(patch=8, size=32, frames=8, pool_heads=2, pool_width=64, layer_scale=1.0)
    config.predictor.update(width=64, depth=3, heads=2, mlp_width=128, window=32)
    config.decoder.update(depth=2, width=192)  # the number of values in a patch (8 * 8 * 3)
    config.teacher.update(weights="assets", taps=2, **TEACHERS["tiny"])
    config.checkpoint.every_steps = 200
    config.log.update(every_steps=25, diagnostics_every_steps=100)
