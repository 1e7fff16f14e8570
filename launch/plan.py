"""Estimates the memory and step time of a run from shapes, without an accelerator.

    python launch/plan.py --config=configs/stage2.py:base --device=h200
    python launch/plan.py --config=configs/stage2.py:1b --device=v5p --mesh=fsdp=16
    python launch/plan.py --config=configs/stage2.py:base --config.batch_size=32 --device=v5p \
        --mesh=fsdp=4 --compile --topology=2x2x1

If the run does not fit, the last line is the command of a run that does. docs/scaling.md explains
the output.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors

config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/stage2.py:base."
)
flags.DEFINE_string("device", None, "One of h200, h100, a100, b200, l40s, v4, v5e, v5p, v6e.")
flags.DEFINE_list(
    "mesh", [], "Sizes of the mesh axes, such as data=2,fsdp=8. Others are 1. Default: config.mesh."
)
flags.DEFINE_bool(
    "compile",
    False,
    "Also compile the step, for the same number of simulated CPU devices or for --topology.",
)
flags.DEFINE_string(
    "topology",
    None,
    "With --compile: compile with the TPU or GPU compiler for the chips of a slice, such as 2x2x1, "
    "or for nodes and GPUs per node, such as 1x8.",
)
flags.DEFINE_string(
    "save_program", None, "With --compile: file to which the compiled program is written as text."
)
flags.DEFINE_bool("json", False, "Print the result as JSON in the last line.")
flags.mark_flags_as_required(["config", "device"])


def main(argv: Sequence[str]) -> None:
    """Makes the plan and prints it."""
    del argv
    from invnext_jax.planning import command_line

    command_line.run()


if __name__ == "__main__":
    errors.run_command(main)
