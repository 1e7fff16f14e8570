"""The paper's ablations (Tables 1 to 4) with ViT-B, 8 frames and a SigLIP2-Large teacher.

    python launch/main.py --config=configs/ablations.py:1b_modernbert2 --workdir=runs/1b_modernbert2
    python launch/main.py --config=configs/ablations.py:3_momentum --workdir=runs/3_momentum \
        --config.init_from=runs/1a_both

configs/sweeps/paper.py runs whole tables, with their evaluations.

A row is named "<table>_<variant>". Some choices are not stated in the paper. In Table 1a, rows
without "diffusion" or "both" in their names use the linear decoder, and rows without "text_init" or
"both" use no text model. The MLP decoder has the width of the diffusion decoder, and the ViT
predictor has the width of the ModernBERT predictor. Pretrained weights are read from the folder
`weights`. Other paths can be set on the command line.

"<row>,tiny" is a small variant of the row for the synthetic world. Widths, heads, patches and image
sizes are those of the tiny configs. The predictor and the decoder have half the depth of the row,
rounded up. Clips have a quarter of the frames. The SigLIP2 teacher is included in the package. Rows
that use a text model, CLIP or DINOv2 need weights of the small size, which are not included.

VideoMAE alignment (Table 2) and the InternVideo2 target (Table 3) are not included, because this
package does not have these models.
"""

import ml_collections

from configs import common, stage1, stage2

Overrides = dict[str, object]  # "section.field" -> value


def _teacher(name: str) -> Overrides:
    fields = {**common.TEACHERS[name], "weights": f"weights/{name}.safetensors"}
    return {f"teacher.{field}": value for field, value in fields.items()}


def _predictor(kind: str, **sizes: int) -> Overrides:
    return {"predictor.kind": kind, **{f"predictor.{name}": size for name, size in sizes.items()}}


def _decoder(kind: str, depth: int, width: int) -> Overrides:
    return {"decoder.kind": kind, "decoder.depth": depth, "decoder.width": width}


# Overrides for all rows, and for all Stage 1 rows. The overrides of a single row are applied last.
BASE = {
    **_teacher("siglip2_large"),
    **_predictor("modernbert", depth=5),
    **_decoder("diffusion", depth=6, width=1536),
    "data.frames": 8,
}
BASE_STAGE1 = {"predictor.weights": "weights/modernbert_large.safetensors"}

NO_TEXT = {"predictor.weights": ""}
LINEAR = {"decoder.kind": "linear"}
ALIGN_ONLY = {"loss.pixels": 0.0, **NO_TEXT}
_VIT = {**NO_TEXT, "predictor.kind": "vit", "predictor.mlp_width": 4096}

_STAGE1: dict[str, Overrides] = {
    "1a_pixels_only": {"loss.align_tokens": 0.0, "loss.align_pooled": 0.0, **LINEAR, **NO_TEXT},
    "1a_align_only": ALIGN_ONLY,
    "1a_linear": {**LINEAR, **NO_TEXT},
    "1a_diffusion": NO_TEXT,
    "1a_text_init": LINEAR,
    "1a_both": {},
    "1b_modernbert2": {"predictor.depth": 2},
    "1b_modernbert5": {},
    "1b_modernbert5_no_init": NO_TEXT,
    "1b_modernbert8": {"predictor.depth": 8},
    "1b_vit5": {**_VIT, "predictor.depth": 5},
    "1b_vit12": {**_VIT, "predictor.depth": 12},
    "1c_linear": LINEAR,
    "1c_mlp3": _decoder("mlp", depth=3, width=1536),
    "1c_diffusion_3x1024": _decoder("diffusion", depth=3, width=1024),
    "1c_diffusion_6x1536": {},
    "1c_diffusion_9x2048": _decoder("diffusion", depth=9, width=2048),
    "2_siglip": {},
    "2_siglip_align_only": ALIGN_ONLY,
    "2_clip": _teacher("clip_large"),
    "2_clip_align_only": {**_teacher("clip_large"), **ALIGN_ONLY},
    "2_dinov2": _teacher("dinov2_large"),
    "2_dinov2_align_only": {**_teacher("dinov2_large"), **ALIGN_ONLY},
    "4_stage1_semantic": {},
    "4_stage1_multi_block": {"mask.kind": "multi_block"},
    "4_stage1_8f": {},
    "4_stage1_16f": {"data.frames": 16},
    "4_stage1_32f": {"data.frames": 32},
}
_STAGE2: dict[str, Overrides] = {
    "3_stage2": {},
    "3_vjepa_predictor": {
        **_predictor("vjepa", width=384, depth=12, heads=12, mlp_width=1536),
        "init_parts": ("encoder", "pool"),
    },
    "3_momentum": {"target.kind": "momentum"},
    "3_siglip_target": {"target.kind": "image"},
    "3_align_visible": {"loss.align_visible": 1.0},
    "3_pixels": {"loss.pixels": 1.0},
    "4_stage2_semantic": {"mask.kind": "semantic"},
    "4_stage2_multi_block": {},
    "4_stage2_8f": {},
    "4_stage2_16f": {"data.frames": 16},
    "4_stage2_32f": {"data.frames": 32},
}
ROWS: dict[str, tuple[str, Overrides]] = {
    **{name: ("stage1", row) for name, row in _STAGE1.items()},
    **{name: ("stage2", row) for name, row in _STAGE2.items()},
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Returns the config of a row.

    Args:
      argument: "<row>" or "<row>,tiny"; see `ROWS`.

    Raises:
      ValueError: the row or the variant is unknown.
    """
    name, _, variant = argument.partition(",")
    if name not in ROWS or variant not in ("", "tiny"):
        raise ValueError(
            f"unknown ablation {argument!r}: choose one of {', '.join(ROWS)}; append ',tiny' for "
            "the tiny variant"
        )
    stage, overrides = ROWS[name]
    config = {"stage1": stage1, "stage2": stage2}[stage].get_config(variant or "base")
    overrides = {**BASE, **(BASE_STAGE1 if stage == "stage1" else {}), **overrides}
    config.update_from_flattened_dict(_shrink(overrides) if variant else overrides)
    return config


def _shrink(overrides: Overrides) -> Overrides:
    """Returns the overrides for the tiny variant of a row."""
    sizes = ("width", "heads", "mlp_width", "patch", "size", "train_size", "tap_interval")
    small = {}
    for name, value in overrides.items():
        field = name.rpartition(".")[2]
        if field in sizes or name == "teacher.depth":
            continue
        small[name] = value
        if field == "depth":
            small[name] = -(-value // 2)
        elif field == "frames":
            small[name] = value // 4
        elif name == "teacher.weights" and overrides["teacher.kind"] == "siglip2":
            small[name] = "assets"
    return small
