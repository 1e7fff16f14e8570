"""Exports the weights of a run as .safetensors files and checks their features.

    python launch/export.py --checkpoint=runs/stage2 --out=encoder.safetensors
    python launch/export.py --checkpoint=runs/stage2 --format=internvideo_next --out=folder

The format "ours" is a .safetensors file and a .json file with the same name. The format
"internvideo_next" is a folder with the files, names and shapes of the published encoders, for use
with PyTorch. To load an export in Python:
invnext_jax.evaluation.video_encoder.VideoEncoder("encoder.safetensors").
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run, or an earlier export.", required=True
)
_OUT = flags.DEFINE_string("out", None, "The .safetensors file or folder to write.", required=True)
_FORMAT = flags.DEFINE_string("format", "ours", "Format: ours or internvideo_next.")
_PARTS = flags.DEFINE_list(
    "parts",
    [],
    "Parts to export: encoder, pool, predictor, decoder, ..., or all. Default: encoder and pool.",
)
_DTYPE = flags.DEFINE_string(
    "dtype", "float32", "Dtype of the internvideo_next format: float32, float16 or bfloat16."
)
_EMA = flags.DEFINE_bool("ema", False, "Export the run's moving average instead of its parameters.")
_STEP = flags.DEFINE_integer(
    "step", None, "Step of the checkpoint of a run to export. Default: the newest.", lower_bound=0
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file or folder.")


def main(argv: Sequence[str]) -> None:
    """Exports the weights and prints what was written."""
    del argv
    from invnext_jax.evaluation import exporter
    from invnext_jax.training import compilation

    compilation.enable_cache()
    export_format = exporter.ExportFormat(_FORMAT.value, _DTYPE.value)
    message = exporter.export_run(
        _CHECKPOINT.value,
        _OUT.value,
        parts=_PARTS.value,
        export_format=export_format,
        overwrite=_OVERWRITE.value,
        ema=_EMA.value,
        step=_STEP.value,
    )
    print(message)


if __name__ == "__main__":
    errors.run_command(main, local_paths=["out"])
