"""Evaluates a frozen encoder with linear probes and baselines, and prints a table.

    python launch/probe.py --config=configs/eval/linear_probe.py:tiny --workdir=runs/p2 \
        --config.checkpoint=runs/s2

The checkpoint is the workdir of a run or an exported .safetensors file. The options are listed in
docs/options.md.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors
from invnext_jax.evaluation import evaluate, tables
from invnext_jax.training import compilation

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/eval/linear_probe.py:tiny."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for results.json and cached features.", required=True
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Evaluates the checkpoint and prints the table."""
    del argv
    compilation.enable_cache()
    results = evaluate.evaluate_checkpoint(_CONFIG.value, _WORKDIR.value)
    print(tables.format_table(results))


if __name__ == "__main__":
    errors.run_command(main, local_paths=["workdir"])
