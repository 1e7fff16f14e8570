"""Trains one stage; the same command again goes on where it stopped.

    python launch/main.py --config=configs/stage1.py:tiny --workdir=runs/stage1

Any field of the config can be set: --config.optimizer.learning_rate=1e-3. On many hosts, the same
command is started on each of them (docs/scaling.md).
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors, train
from invnext_jax.multihost import distributed
from invnext_jax.training import compilation

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/stage1.py:tiny"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes take part.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Trains."""
    del argv
    distributed.initialize(_ADDRESS.value, _PROCESSES.value, _PROCESS.value)
    compilation.enable_cache()
    train.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    errors.run_command(main)
