"""Trains one stage. The same command resumes a run that was stopped.

    python launch/main.py --config=configs/stage1.py:tiny --workdir=runs/stage1

Any field of the config can be set, for example --config.optimizer.learning_rate=1e-3
(docs/options.md). On several hosts, start the same command on each of them (docs/scaling.md).
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/stage1.py:tiny."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, local or gs://BUCKET/FOLDER.", required=True
)
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "Address of process 0, host:port.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Trains a stage."""
    del argv
    # Imported here, so that --help and errors of flags are fast, as in all commands.
    from invnext_jax import train
    from invnext_jax.multihost import distributed
    from invnext_jax.training import compilation, host_memory

    host_memory.keep_freed_memory()
    distributed.initialize(_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    compilation.enable_cache()
    train.train(_CONFIG.value, _WORKDIR.value, errors.list_overrides())


if __name__ == "__main__":
    errors.run_command(main)
