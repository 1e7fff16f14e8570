"""Trains the image teacher of the synthetic world, a small SigLIP2 (docs/teacher.md).

    python launch/train_teacher.py --config=configs/teacher.py:tiny --workdir=runs/teacher

The image tower is written to <workdir>/siglip2.safetensors. Use it in Stage 1 with
--config.teacher.weights=<workdir>/siglip2.safetensors.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/teacher.py:tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for weights and metrics.", required=True)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Trains the teacher and prints its metrics on held-out clips."""
    del argv
    from invnext_jax.synthetic_world import train_teacher
    from invnext_jax.training import compilation, host_memory

    host_memory.keep_freed_memory()
    compilation.enable_cache()
    metrics = train_teacher.train(_CONFIG.value, _WORKDIR.value)
    print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


if __name__ == "__main__":
    errors.run_command(main, local_paths=["workdir"])
