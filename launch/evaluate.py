"""Evaluates a frozen encoder and prints tables.

    python launch/evaluate.py --config=configs/eval/tasks/linear_probe.py:tiny \
        --checkpoint=runs/s2 --workdir=runs/e2

The checkpoint is the workdir of a run, an exported .safetensors file, or a folder of an encoder in
the published format or in that of transformers. The options are listed in docs/options.md. To
resume an interrupted evaluation, repeat the command. On several hosts, start the same command on
each of them (docs/scaling.md).
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/eval/tasks/linear_probe.py:tiny."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Encoder to evaluate, instead of config.checkpoint."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for results.json and cached features.", required=True
)
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "Address of process 0, host:port.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Evaluates the checkpoint and prints the tables."""
    del argv
    from invnext_jax.evaluation import evaluate, tables
    from invnext_jax.multihost import distributed
    from invnext_jax.training import compilation, host_memory

    host_memory.keep_freed_memory()
    distributed.initialize(_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    compilation.enable_cache()
    config = _CONFIG.value
    if _CHECKPOINT.value is not None:
        config.checkpoint = _CHECKPOINT.value
    results = evaluate.evaluate_checkpoint(config, _WORKDIR.value, errors.list_overrides())
    print(tables.format_table(results))


if __name__ == "__main__":
    errors.run_command(main, local_paths=["workdir"])
