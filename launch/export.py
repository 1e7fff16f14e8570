"""Writes a run's encoder as .safetensors with a .json, and checks that both give equal features.

    python launch/export.py --checkpoint=runs/stage2 --out=encoder.safetensors

In Python: invnext_jax.evaluation.features.load_encoder("encoder.safetensors").
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.evaluation import exports
from invnext_jax.runtime import compilation

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the run.", required=True)
_OUT = flags.DEFINE_string("out", None, "The .safetensors file to write.", required=True)
_PREDICTOR = flags.DEFINE_bool("predictor", False, "Write the predictor too.")
_DECODER = flags.DEFINE_bool("decoder", False, "Write the pixel decoder of Stage 1 too.")
_POOL = flags.DEFINE_bool("pool", False, "Write the attention pool too.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace other weights of that name.")


def main(argv: Sequence[str]) -> None:
    """Exports, and says what was written."""
    del argv
    compilation.enable_cache()
    wanted = {
        "encoder": True,
        "predictor": _PREDICTOR.value,
        "decoder": _DECODER.value,
        "pool": _POOL.value,
    }
    parts = [name for name, is_wanted in wanted.items() if is_wanted]
    print(
        exports.export_run(_CHECKPOINT.value, _OUT.value, parts=parts, overwrite=_OVERWRITE.value)
    )


if __name__ == "__main__":
    errors.run_command(main)
