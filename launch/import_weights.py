"""Converts weights of other projects to .safetensors files for this package, without PyTorch.

    python launch/import_weights.py --kind=siglip2 --source=FOLDER --out=teacher.safetensors

The kinds are siglip2, clip, dinov2 (image teachers), modernbert (initial weights of the predictor)
and internvideo_next (published video encoders). The source is a folder in Hugging Face format, or a
.safetensors file with its config.json in the same folder.
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors

_KIND = flags.DEFINE_string(
    "kind", None, "One of siglip2, clip, dinov2, modernbert, internvideo_next.", required=True
)
_SOURCE = flags.DEFINE_string("source", None, "Folder or .safetensors file.", required=True)
_OUT = flags.DEFINE_string("out", None, "The .safetensors file to write.", required=True)
_LAST_LAYERS = flags.DEFINE_integer(
    "last_layers", 8, "For modernbert: how many of the last layers to keep."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")


def main(argv: Sequence[str]) -> None:
    """Imports the weights and prints how to use them."""
    del argv
    from invnext_jax.weights import import_weights

    message = import_weights.import_weights(
        _KIND.value,
        _SOURCE.value,
        _OUT.value,
        last_layers=_LAST_LAYERS.value,
        overwrite=_OVERWRITE.value,
    )
    print(message)


if __name__ == "__main__":
    errors.run_command(main, local_paths=["source", "out"])
