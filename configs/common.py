"""Every option of a pretraining run with its default, and the sizes of the variants.

Durations are in steps. Learning rates are final values: the paper scales 1e-3 by batch / 256.
"""

import ml_collections

VIDEOS = 1_100_000  # K-Mash, the paper's unlabeled training set
VARIANTS = ("tiny", "base", "large", "1b")

# Encoder widths, paper section 4 and the released model definitions.
ENCODERS = {
    "tiny": {"width": 64, "depth": 4, "heads": 2, "mlp_width": 256, "drop_path": 0.0},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "drop_path": 0.1},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "drop_path": 0.2},
    "1b": {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144, "drop_path": 0.2},
}

# Published image teachers. The Large ones are tapped over the share of the depth that the giant is.
TEACHERS = {
    "siglip2_giant": {
        "kind": "siglip2",  # "siglip2" | "clip" | "dinov2"
        "width": 1536,
        "depth": 40,
        "heads": 16,
        "mlp_width": 6144,
        "activation": "gelu_tanh",  # of clip: "quick_gelu" | "gelu"; others have but one
        "registers": 0,  # of dinov2: 0 | 4
        "gated": False,  # of dinov2: SwiGLU, whose two halves are mlp_width wide each
        "patch": 16,
        "size": 256,  # of the images it sees
        "train_size": 256,  # of the images its position table was trained for
        "tap_interval": 3.33,  # every so many layers is tapped, counted from the last
    },
    "tiny": {  # what this package ships
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
    """The options that both stages share, at the sizes of the Base model."""
    config = ml_collections.ConfigDict()
    config.stage = ""  # "stage1" or "stage2": the file of the package that gives model and loss
    config.variant = "base"
    config.seed = 0
    config.total_steps = 0
    config.batch_size = 2048  # clips a step, over all devices and hosts
    # Workdir, or exported .safetensors, of the run whose parameters start this one.
    config.init_from = ""
    config.init_parts = ()  # what is taken from there ("encoder", ...); (): all that fits the stage
    config.init_from_unfinished = False  # whether that run may have steps left
    # Parts that the batch is taken in, one after the other, where it does not fit at once; each has
    # random numbers of its own.
    config.accumulate = 1
    # Moving average of all parameters, saved with them: the share that stays in a step; 0: none.
    config.ema = ml_collections.ConfigDict({"decay": 0.0})
    config.profile_steps = ()  # (10, 13) traces steps 11 to 13 into the workdir's folder `profile`
    config.dtype = "bfloat16"  # of the matmuls; parameters, norms and losses stay float32
    # Linear layers of the image teacher and of Stage 2's target: "": as the others; "int8" or
    # "float8" (e4m3): rounded to 8 bits, which costs less where the hardware multiplies them.
    config.quantize_frozen = ""
    # "auto" is the fused kernel of the platform, "cudnn" (GPUs) or "splash" (TPUs), and elsewhere
    # plain XLA, in blocks where the logits are many; also "blockwise" and "naive", all at once.
    config.attention = "auto"
    config.init_gain = (
        1.0  # factor on the kernels' start values (deviation 0.02; not the decoder's)
    )
    config.remat = "none"  # "none" | "dots" | "full": what the backward pass recomputes
    # Layers that a turn of the scan over them takes; the compiler sees more and takes longer.
    config.scan_unroll = 1
    config.data = data()
    config.encoder = ml_collections.ConfigDict(
        {
            **ENCODERS["base"],
            "patch": 14,
            "size": 224,  # pixels a side that the position tables are built for
            "frames": 16,  # frames that the position tables are built for
            "class_tokens": 4,
            "layer_scale": 1e-5,  # initial value
            "pool_heads": 16,
            "pool_width": 768,
        }
    )
    config.predictor = ml_collections.ConfigDict(
        {
            "kind": "modernbert",  # "modernbert" | "vit" | "vjepa"
            "weights": "",  # .safetensors of the text model that starts a modernbert; "": none
            "width": 1024,
            "depth": 5,  # the last layers of the text model
            "heads": 16,
            "mlp_width": 2624,
            "window": 128,  # local layers see half of it on each side
            "last_layer": 27,  # number of the last layer; a multiple of 3 attends globally
        }
    )
    # The pixel decoder: trained where `loss.pixels` is not 0.
    config.decoder = ml_collections.ConfigDict(
        {
            "kind": "diffusion",  # "diffusion" | "linear" | "mlp"
            "depth": 6,
            "width": 1536,
            "noise_draws": 1,  # noised copies of each masked patch a step
            "chunks": 1,  # parts of the patches that are decoded one after the other, for memory
            "dtype": "float32",
        }
    )
    # The frozen image teacher, read only where a loss, a mask or the target needs it.
    config.teacher = ml_collections.ConfigDict(
        {
            "weights": "",  # .safetensors file of the vision tower
            "taps": 6,  # intermediate features that the student aligns with
            # Whether `size` may give another grid than the encoder's: smaller images cost less, and
            # features and attention are interpolated.
            "resample": False,
            **TEACHERS["siglip2_giant"],
        }
    )
    config.mask = ml_collections.ConfigDict(
        {
            "kind": "semantic",  # "semantic" | "multi_block" | "tube" | "random"
            "ratio": 0.75,  # masked share (semantic, tube, random); the paper's text says 0.8
            "predicted": 1.0,  # share of the masked places that the losses look at, drawn anew
            "blocks": ((8, 0.15), (2, 0.7)),  # multi-block: (blocks, share of the frame each)
            "visible": (0.38, 0.19),  # multi-block: share that stays visible, one for each kind
            "aspect": (0.75, 1.5),
            # Multi-block: how `visible` is met: "scale" the blocks, or "cut" the tokens in raster
            # order, as the released scripts do (there visible is 0.196 and 0.08).
            "fit": "scale",
        }
    )
    config.optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": 0.0,
            "min_learning_rate": 0.0,
            "warmup_steps": 0,
            "betas": (0.9, 0.98),
            "eps": 1e-6,
            "weight_decay": 0.05,
            "clip_norm": 5.0,
            "frozen": (),  # top-level parameter groups that are not trained
        }
    )
    # One size may be -1: the rest of the devices; docs/scaling.md says what each axis splits.
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1})
    config.checkpoint = ml_collections.ConfigDict(
        {
            "every_steps": 1000,
            "every_minutes": 0.0,  # also so long after the last one; 0: by steps alone
            "keep_last": 2,
            "keep_every_steps": 0,  # every so many steps one is kept for good; 0: none
            "keep_best": 0,  # so many of the best by `best_metric`; never at the cost of the last
            "best_metric": "loss",  # a logged metric, its mean over the steps logged since the last
            "best_mode": "min",  # "min" | "max"
        }
    )
    config.log = ml_collections.ConfigDict(
        {
            "every_steps": 50,
            "diagnostics_every_steps": 500,  # what the losses hide; 0 turns it off
            "max_nonfinite_steps": 20,  # in a row; more end the run
            # No step for so long: stack traces in the log. 0: never. Compilation may take 6 times.
            "watchdog_minutes": 15.0,
            # Whether a large matrix product is timed at the start (GPU, CPU; below a second), so
            # that the log can say what share of its speed the training reaches.
            "measure_ceiling": True,
        }
    )
    return config


def data() -> ml_collections.ConfigDict:
    """Options of the input pipeline."""
    return ml_collections.ConfigDict(
        {
            # CSV (path, source; start, end, record, label_<task>), or a folder with one; or a drawn
            # world, such as world:simple/train?videos=2000; or several, separated by commas.
            "manifest": "",
            "weights": (),  # ((source, weight), ...) of the sources; (): every row equally often
            "repeats": 1,  # clips cut from a video each time it is decoded
            "frames": 16,
            "sampling": "sparse",  # "sparse": one frame a segment of the video | "dense"
            "stride": (4, 4),  # dense: frames from one to the next, drawn per clip of this range
            "size": 224,
            "short_side": 256,  # pixels that crops are measured in: the picture so scaled, never up
            "crop": "multi_scale",  # "multi_scale" | "random_resized"
            "crop_scales": (1.0, 0.875, 0.75, 0.66),  # multi_scale: shares of the short side
            "crop_area": (0.3, 1.0),  # random_resized: share of the picture
            "crop_aspect": (0.75, 4 / 3),  # random_resized: width over height
            "jitter": (0.0, 0.0, 0.0, 0.0),  # of brightness, contrast, saturation, hue (to 0.5)
            "flip": True,
            # Other values of the fields from `sampling` to `flip`, but for the sizes, for a source.
            "by_source": {
                "ssv2": {"flip": False},  # left and right carry meaning
                "world": {"flip": False},
            },
            # Decoding processes, of one thread each; -1: one a core, at most 16; 0 decodes in
            # threads of this process, where a clip that hangs leaves its thread behind.
            "workers": -1,
            "prefetch": 4,  # clips held ready for each worker
            "clip_seconds": 60.0,  # longest time for a video's clips; its worker is ended then
            "on_bad": "drop",  # "drop": another clip takes a bad one's place; "fail": the run ends
            "max_bad_share": 0.5,  # of at least 100 clips tried; more end the run
        }
    )


def apply_variant(config: ml_collections.ConfigDict, variant: str) -> None:
    """Sets the sizes of `variant` in place; the tiny one is made for the embedded world.

    Raises:
        ValueError: `variant` is none of `VARIANTS`.
    """
    variant = variant or "base"
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config.variant = variant
    config.encoder.update(ENCODERS[variant])
    if variant == "tiny":
        _apply_tiny(config)


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
    # The deviation 0.02 belongs to width 768; this keeps the layers' gain at width 64.
    config.init_gain = (768 / 64) ** 0.5
    # Layer scale 1e-5 keeps a run of some hundred steps an identity map, so it starts at 1 here.
    config.encoder.update(patch=8, size=32, frames=8, pool_heads=2, pool_width=64, layer_scale=1.0)
    config.predictor.update(width=64, depth=3, heads=2, mlp_width=128, window=32)
    config.decoder.update(depth=2, width=192)  # no narrower than a patch (8 * 8 * 3)
    config.teacher.update(weights="assets", taps=2, **TEACHERS["tiny"])
    config.checkpoint.every_steps = 200
    config.log.update(every_steps=25, diagnostics_every_steps=100)
