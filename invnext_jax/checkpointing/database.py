"""Checks the database in which the arrays of a checkpoint are stored (OCDBT).

A node of its tree stores a key without the characters that it shares with the previous key, and is
compressed. A forged node of a few kB can therefore need any amount of memory. TensorStore has no
limit, so a worker process reads all nodes first. It imports this module without JAX.
"""

import os

from invnext_jax.errors import UserError
from invnext_jax.workers import worker_main
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError
from invnext_jax.workers.time_limits import TimeLimitError

SECONDS = 300.0  # time limit; the tree of a large model is read in less than a second


def check_nodes(state: str | os.PathLike) -> None:
    """Checks that the nodes of a database can be read with the memory of a worker process.

    Args:
      state: local folder of the state of a checkpoint, which need not have a database.

    Raises:
      UserError: the nodes need more memory or time than a worker has.
      ValueError: a node is damaged.
    """
    if not os.path.exists(os.path.join(state, "manifest.ocdbt")):
        return
    worker = ProcessWorker(_count_keys)
    try:
        worker.call((os.fspath(state),), SECONDS)
    except (WorkerDiedError, TimeLimitError) as error:
        raise UserError(
            f"the list of arrays in {state} needs more than {worker_main.MAX_BYTES / 2**30:.0f} "
            f"GiB of memory or {SECONDS:.0f} s: use another checkpoint"
        ) from error
    except RuntimeError as error:  # the last line of a traceback is the reason
        reason = str(error).strip().rpartition("\n")[2]
        raise ValueError(f"its database is damaged: {reason}") from error
    finally:
        worker.close()


def _count_keys(state: str) -> int:
    """Reads all nodes of a database and returns the number of its keys."""
    import tensorstore  # only the worker needs it here

    base = {"driver": "file", "path": f"{state}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    return len(store.list().result())
