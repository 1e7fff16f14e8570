"""Writes a run's weights as .safetensors, and checks that the files give equal features.

    python launch/export.py --checkpoint=runs/stage2 --out=encoder.safetensors
    python launch/export.py --checkpoint=runs/stage2 --format=internvideo_next --out=folder

Ours is a .safetensors and a .json of the same name; internvideo_next is a folder with the files,
names and shapes of the published encoders, for PyTorch users of those. In Python:
invnext_jax.evaluation.video_encoder.VideoEncoder("encoder.safetensors").
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.evaluation import exporter
from invnext_jax.training import compilation

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of the run, or an earlier export.", required=True
)
_OUT = flags.DEFINE_string("out", None, "The .safetensors file or folder to write.", required=True)
_FORMAT = flags.DEFINE_string("format", "ours", "Layout: ours or internvideo_next.")
_PARTS = flags.DEFINE_list(
    "parts",
    [],
    "encoder, pool, predictor, decoder, ...; all for all; if not given: encoder and pool.",
)
_DTYPE = flags.DEFINE_string(
    "dtype", "float32", "Type in the published layout: float32, float16 or bfloat16."
)
_EMA = flags.DEFINE_bool("ema", False, "The run's moving average instead of its parameters.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace other weights of that name.")


def main(argv: Sequence[str]) -> None:
    """Exports, and says what was written."""
    del argv
    compilation.enable_cache()
    form = exporter.ExportFormat(_FORMAT.value, _DTYPE.value)
    said = exporter.export_run(
        _CHECKPOINT.value,
        _OUT.value,
        parts=_PARTS.value,
        form=form,
        overwrite=_OVERWRITE.value,
        ema=_EMA.value,
    )
    print(said)


if __name__ == "__main__":
    errors.run_command(main)
