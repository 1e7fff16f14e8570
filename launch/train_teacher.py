"""Trains the semantic teacher of the embedded world, for machines that can download none.

    python launch/train_teacher.py --config=configs/teacher.py:tiny --workdir=runs/teacher

The vision tower goes to <workdir>/siglip2.safetensors; Stage 1 takes it as
--config.teacher.weights=<workdir>/siglip2.safetensors.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors
from invnext_jax.synthetic_world import train_teacher
from invnext_jax.training import compilation

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/teacher.py:tiny"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for weights and metrics.", required=True)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Trains, and prints what was measured on held-out clips."""
    del argv
    compilation.enable_cache()
    measured = train_teacher.train(_CONFIG.value, _WORKDIR.value)
    print("  ".join(f"{name} {value:.4g}" for name, value in measured.items()))


if __name__ == "__main__":
    errors.run_command(main)
