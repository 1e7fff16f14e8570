"""If only one of two processes fails, both raise the error, without a deadlock."""

import contextlib
import pathlib
import socket

from processes import run_two_processes
from toy_run import MANIFEST

from invnext_jax.checkpointing.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[2]
TOY_RUN = pathlib.Path(__file__).parents[1] / "support/toy_run.py"
HOST = socket.gethostname()

NO_CHECKPOINT = "error: {}{} does not exist: use the --workdir of a run that saved a checkpoint"

START = """
import contextlib, functools, importlib.util, os, pathlib, shutil, sys
from absl import flags, logging
import jax, numpy as np, optax
import orbax.checkpoint as ocp
flags.FLAGS.mark_as_parsed()
from invnext_jax import errors
from invnext_jax.stages import registry
from invnext_jax import train
from invnext_jax.errors import UserError
from invnext_jax.checkpointing import reader
from invnext_jax.checkpointing import manager, run_metadata
from invnext_jax.multihost import distributed
from invnext_jax.checkpointing import checksums
from invnext_jax.checkpointing import restore as restore_lib
from invnext_jax.multihost import consensus
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib
from invnext_jax.checkpointing.workdir import Workdir
process, workdir = int(os.environ["JAX_PROCESS_ID"]), pathlib.Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("toy", sys.argv[2])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
registry.STAGES["toy"] = toy.make_toy_stage()
train.pipeline.make_train_dataset = toy.ToyData()
config = toy.make_toy_config(str(workdir.parent / "manifest.csv"))
config.mesh.update(data=1, fsdp=2)
def attempt(do, *arguments):
    try:
        return do(*arguments)
    except errors.UserError as error:
        return f"error: {error}"
"""

SAVES = """
class FailingWrite(ocp.future.Future):
    def result(self, timeout=None):
        raise OSError("the disk of this host is gone")

async def fail_at_once(*_, **__):
    raise OSError("no memory on this host")

async def fail_later(*_, **__):
    return [FailingWrite()]

def fail(*_, **__):
    raise OSError("no room for checksums")

@contextlib.contextmanager
def replaced(owner, name, value, where):
    original = getattr(owner, name)
    if process == where:
        setattr(owner, name, value)
    yield
    setattr(owner, name, original)

distributed.initialize(timeout_seconds=60)
mesh = mesh_lib.make_mesh(config.mesh)
stage = toy.make_toy_stage()
init_fn = functools.partial(stage.init_params, config, stage.make_model(config))
abstract = state_lib.abstract_state(init_fn, optax.adam(1e-3), mesh)

def make_state(step):
    def fill(x, value):
        return jax.make_array_from_callback(
            x.shape, x.sharding, lambda i: np.full(x.shape, value, x.dtype)[i]
        )

    state = jax.tree.map(lambda x: fill(x, step), abstract)
    return state.replace(skipped_in_row=fill(abstract.skipped_in_row, 0))

class Position:
    set_state = print

def list_folder():
    with consensus.all_hosts_agree("the list"):  # process 0 has removed old checkpoints
        pass
    print("checkpoints:", sorted(os.listdir(workdir / "checkpoints")))

def save(step):
    checkpointer.save(step, make_state(step), {"next": step})
    checkpointer.wait()
    print("newest:", checkpointer.saved_step, checkpointer._manager.latest_step())

def restore():
    checkpointer = manager.Checkpointer(locked, config, record)
    with contextlib.closing(checkpointer):
        state = checkpointer.restore(abstract, Position)
        return int(state.step), checkpointer.saved_step

locked, record = Workdir(workdir), run_metadata.describe_run(config, "0" * 64)
checkpointer = manager.Checkpointer(locked, config, record)
arrays = ocp.PyTreeCheckpointHandler
save(1)
with replaced(arrays, "async_save", fail_at_once, 1):
    save(2)
with replaced(arrays, "async_save", fail_later, 1):
    save(3)
with replaced(checksums, "write_checksums", fail, 0):
    save(4)
save(4)
save(5)
checkpointer.close()
list_folder()
with replaced(restore_lib, "check_step", fail, 1):
    print(attempt(restore))
measure = checksums._size_and_digest

def find_damage_in_5(path):
    return (0, "") if path.parts[-3:-2] == ("5",) else measure(path)

with replaced(checksums, "_size_and_digest", find_damage_in_5, 1):
    print("from:", restore())
list_folder()
print(attempt(reader.restore_run, workdir if process else workdir / "absent"))
"""


def run_pair(script, folder):
    """Runs a script in two processes; returns exit code, output and errors of each."""
    (folder / "manifest.csv").write_text(MANIFEST)
    return run_two_processes(START + script, folder / "run", TOY_RUN, timeout=120)


def test_two_processes_agree_on_what_is_saved_and_restored(tmp_path):
    ended = run_pair(SAVES, tmp_path)
    assert [code for code, _, _ in ended] == [0, 0], ended
    folder = tmp_path / "run/checkpoints"
    for process, (_, out, _) in enumerate(ended):
        lines = out.replace(str(folder), "FOLDER").splitlines()
        other = "" if process else f"process 1 (host {HOST}): "
        assert lines == [
            *["newest: 1 1"] * 4,
            *["newest: 4 4", "newest: 5 5", "checkpoints: ['4', '5']"],
            f"error: {other}the checkpoint FOLDER/5 cannot be read: OSError: no room for "
            "checksums. It is not marked as damaged and was not moved. Fix the cause and run the "
            "command again.",
            *["{'next': 4}", "from: (4, 4)", "checkpoints: ['4', 'damaged-5']"],
            NO_CHECKPOINT.format(
                f"process 0 (host {HOST}): " if process else "", tmp_path / "run/absent"
            ),
        ], lines
    warnings = [line for line in ended[0][2].splitlines() if "could not be saved" in line]
    assert f"(process 1 (host {HOST}): OSError: no memory on this host; " in warnings[0]
    assert f"(process 1 (host {HOST}): OSError: the disk of this host is gone; " in warnings[1]
    assert f"(process 0 (host {HOST}): OSError: no room for checksums; " in warnings[2]
    assert len(warnings) == 3
    assert "could not be saved" not in ended[1][2]


ERRORS = """
distributed.initialize(timeout_seconds=60)
def agree(error, where, error_types=(UserError,)):
    with consensus.all_hosts_agree("a barrier", error_types) as broadcast:
        broadcast.value = ["of process", process]
        if process == where:
            raise error
    return broadcast.value
print(attempt(agree, None, 2))
print(attempt(agree, UserError("a sentence"), 1))
print(attempt(agree, UserError("another"), process))
try:
    print(attempt(agree, KeyError("a mistake"), 1))
except KeyError:
    print("a mistake")
try:
    raised = [checksums.CorruptCheckpointError("a"), UserError("b")][process]
    agree(raised, process, checksums.READ_ERRORS)
except UserError as error:
    print(error)
other = config.copy_and_resolve_references()
other.total_steps, other.data.workers = 100 + process, process
print(attempt(train.train, other, workdir.parent / "other"))
evaluated = config.copy_and_resolve_references()
evaluated.eval.update(every_steps=1, manifest=f"world:simple/val?videos={4 + process}")
print(attempt(train.train, evaluated, workdir.parent / "evaluated"))
with errors.exit_on_user_error():
    train.train(config, workdir)
"""


def test_if_one_process_raises_all_raise_and_exit_with_code_2(tmp_path):
    with contextlib.closing(Workdir(tmp_path / "run")):  # another run
        ended = run_pair(ERRORS, tmp_path)
    assert [code for code, _, _ in ended] == [2, 2], ended
    zero, one = (
        [line for line in out.splitlines() if not line.startswith("toy data")]
        for _, out, _ in ended
    )
    assert zero[0] == one[0] == "['of process', 0]"
    raised = f"process 1 (host {HOST}): a sentence"
    assert (zero[1], one[1]) == (f"error: {raised}", "error: a sentence")
    assert zero[2] == one[2] == "error: another"
    crashed = f"error: process 1 (host {HOST}): it ended with KeyError: 'a mistake'"
    assert (zero[3], one[3]) == (crashed, "a mistake")
    assert (zero[4], one[4]) == (f"process 1 (host {HOST}): b", "b")
    differs = "config or manifest differs from that of process 0. Use the same for all:"
    assert zero[5:7] == [
        f"error: process 1 (host {HOST}): {differs}",
        "  config.total_steps: 100 -> 101",
    ]
    assert one[5] == f"error: {differs}"
    manifest = "config.eval.manifest='world:simple/val?videos=5'"
    assert one[7].startswith(f"error: {manifest} of this process does not have the content")
    assert zero[7] == f"error: process 1 (host {HOST}): {one[7].removeprefix('error: ')}"
    locked = f"another process uses {tmp_path / 'run'}"
    assert ended[0][2].splitlines()[-1].startswith(f"error: {locked}")
    assert ended[1][2].splitlines()[-1].startswith(f"error: process 0 (host {HOST}): {locked}")
