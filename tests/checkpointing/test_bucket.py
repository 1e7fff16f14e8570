"""Runs with a workdir in a simulated bucket, which has no folders, renames or appends."""

import json
import pathlib
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend as epath_backend
from object_store import BUCKET, REGISTRY, FakeFileSystem, ObjectStore, serve, use_store
from processes import run_two_processes
from toy_run import MANIFEST, KilledError, assert_equal_runs, kill, untimed

from invnext_jax import train
from invnext_jax.checkpointing import reader, storage
from invnext_jax.checkpointing.workdir import open_workdir
from invnext_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("first_device_only")
RUN = f"gs://{BUCKET}/team/run"


@pytest.fixture(scope="module")
def server():
    """The HTTP server of the simulated bucket. TensorStore reads its address only once."""
    with pytest.MonkeyPatch.context() as patch:
        server = serve(ObjectStore())
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        yield server
        server.shutdown()
        server.server_close()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket, as an `ObjectStore`."""
    store = server.RequestHandlerClass.store
    store.objects.clear()
    use_store(store, monkeypatch)
    epath_backend.fsspec_backend._get_filesystem.cache_clear()
    yield store
    epath_backend.fsspec_backend._get_filesystem.cache_clear()


def download(bucket, folder):
    """Copies the run's objects to local files."""
    for name in bucket.names("team/run/"):
        path = folder / name.removeprefix("team/run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.read(name))
    return folder


def test_run_in_a_bucket_equals_a_local_run(whole_run, toy_config, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = train.train(toy_config, RUN)
    assert last["step"] == 6
    copy = download(bucket, tmp_path / "copy")
    assert_equal_runs(whole_run, copy)
    assert json.loads((copy / "config.json").read_text())["stage"] == "toy"
    assert (copy / "parameters.txt").exists() and list((copy / "tensorboard").iterdir())
    assert not (copy / "run.lock").exists() and not (tmp_path / "gs:").exists()
    assert reader.finished_steps(epath.Path(RUN) / "checkpoints") == [3, 6]


def test_killed_run_resumes_from_the_bucket(whole_run, toy_config, toy_data, bucket, tmp_path):
    toy_data.before_batch[5] = kill
    with pytest.raises(KilledError):
        train.train(toy_config, RUN)
    toy_data.before_batch.clear()
    train.train(toy_config, RUN)
    copy = download(bucket, tmp_path / "copy")
    assert_equal_runs(whole_run, copy)
    assert untimed(copy) == untimed(whole_run)


def test_other_runs_read_parameters_from_the_bucket(whole_run, toy_config, bucket):
    train.train(toy_config, RUN)
    params, config, step = reader.restore_run(RUN)[:3]
    assert (step, config.stage) == (6, "toy")
    jax.tree.map(np.testing.assert_array_equal, params, reader.restore_params(whole_run)[0])


def test_unfinished_save_is_not_restored_and_is_removed(toy_config, bucket, caplog):
    train.train(toy_config, RUN)
    bucket.delete("team/run/checkpoints/6/commit_success.txt")
    assert reader.restore_run(RUN).step == 3
    train.train(toy_config, RUN)
    assert any("6 is incomplete because its run was killed" in text for text in caplog.messages)
    assert reader.restore_run(RUN).step == 6


def test_damaged_checkpoint_is_moved_and_the_one_before_is_restored(toy_config, bucket, caplog):
    train.train(toy_config, RUN)
    name = next(name for name in bucket.names("team/run/checkpoints/6/state/") if "/d/" in name)
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 1
    bucket.write(name, content)
    train.train(toy_config, RUN)
    assert any("6 is damaged" in text and "has changed" in text for text in caplog.messages)
    assert bucket.names("team/run/checkpoints/damaged-6/state/")
    assert not bucket.names("team/run/checkpoints/damaged-6/commit_success.txt")
    assert reader.restore_run(RUN).step == 6


# From Python 3.13 on, files that could not be closed report this once more when they are deleted.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bucket_that_cannot_be_written_for_a_while_loses_no_record(
    whole_run, toy_config, toy_data, bucket, tmp_path, caplog
):
    toy_config.checkpoint.every_steps = 2
    write = bucket.write

    def refuse(name, content):
        raise PermissionError(13, "Permission denied", name)

    def refuse_after_a_save():
        while "team/run/checkpoints/2/commit_success.txt" not in bucket.objects:
            time.sleep(0.01)
        bucket.write = refuse

    toy_data.before_batch[4] = refuse_after_a_save
    toy_data.before_batch[6] = lambda: setattr(bucket, "write", write)
    train.train(toy_config, RUN)
    warnings = [text for text in caplog.messages if "could not be saved" in text]
    assert len(warnings) == 1 and "step 4 could not be saved" in warnings[0]
    assert "(Permission denied: gs://bucket/team/run/run.lock)" in warnings[0]
    assert any("records cannot be copied" in text for text in caplog.messages)
    assert_equal_runs(whole_run, download(bucket, tmp_path / "copy"))


TRAINING = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import object_store, pytest, toy_run
from absl import flags
flags.FLAGS.mark_as_parsed()
from invnext_jax import errors, train
from invnext_jax.multihost import distributed
from invnext_jax.stages import registry
patch = pytest.MonkeyPatch()
object_store.use_store(object_store.RemoteStore(os.environ["STORE_PORT"]), patch)
registry.STAGES["toy"] = toy_run.make_toy_stage()
train.pipeline.make_train_dataset = toy_run.ToyData()
config = toy_run.make_toy_config(sys.argv[3])
config.mesh.update(data=1, fsdp=2)
config.total_steps = int(sys.argv[4])
distributed.initialize(timeout_seconds=60)
with errors.exit_on_user_error():
    train.train(config, "gs://bucket/team/run")
"""


@pytest.mark.slow
def test_two_processes_save_and_resume_in_a_bucket(bucket, server, tmp_path):
    (tmp_path / "manifest.csv").write_text(MANIFEST)
    root, port = pathlib.Path(__file__).parents[2], str(server.server_port)
    for steps in (3, 6):
        arguments = root, root / "tests/support", tmp_path / "manifest.csv", steps
        ended = run_two_processes(TRAINING, *arguments, STORE_PORT=port)
        assert [code for code, _, _ in ended] == [0, 0], ended
    assert "resumes after step 3" in ended[0][1]
    assert reader.finished_steps(epath.Path(RUN) / "checkpoints") == [3, 6]
    assert reader.restore_run(RUN).step == 6
    logged = bucket.read("team/run/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4, 5, 6]


def test_later_run_takes_the_workdir_and_the_earlier_one_stops(bucket, caplog):
    earlier = open_workdir(epath.Path(RUN))
    assert earlier.write_error(1) == ""
    later = open_workdir(epath.Path(RUN))
    assert "was not released by its last run" in caplog.text
    with pytest.raises(UserError, match="another run was started in gs://bucket/team/run"):
        earlier.write_error(1)
    earlier.close()
    assert later.write_error(1) == "" and bucket.names("team/run/run.lock")
    later.close()
    assert not bucket.names()


def test_url_of_another_kind_is_refused():
    for url in ("s3://bucket/run", "gs://", "file:///tmp/run"):
        with pytest.raises(UserError, match="must be a local path or gs://BUCKET/FOLDER"):
            storage.open_path("--workdir", url)


def test_missing_gcsfs_is_one_sentence(monkeypatch):
    epath_backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in FakeFileSystem.protocol:
        monkeypatch.delitem(REGISTRY, name, raising=False)
    with pytest.raises(UserError, match="gs://bucket/run needs the package gcsfs: pip install"):
        storage.open_path("--workdir", "gs://bucket/run")


def test_error_of_the_client_becomes_an_error_of_the_system():
    with pytest.raises(FileNotFoundError), storage.translate_errors():
        raise FileNotFoundError("gs://bucket/absent")
    with pytest.raises(OSError, match="OSError: no answer") as raised, storage.translate_errors():
        raise OSError("no answer")
    assert raised.value.strerror
