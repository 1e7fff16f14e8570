"""Shared fixtures, eight simulated CPU devices, strict rank promotion, and the option `--slow`."""

import contextlib
import gc
import os
import pathlib
import shutil
import signal

from processes import FAST_TO_COMPILE

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles in half the time
user_flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{user_flags} {FAST_TO_COMPILE} --xla_force_host_platform_device_count=8"

import fakes  # noqa: E402
import jax  # noqa: E402
import ml_collections  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from configs import common, stage1, stage2  # noqa: E402
from invnext_jax import train  # noqa: E402
from invnext_jax.synthetic_world.files import write_world  # noqa: E402
from invnext_jax.synthetic_world.scene import WorldSpec  # noqa: E402
from invnext_jax.training import mesh as mesh_lib  # noqa: E402

pytest_plugins = ("parity", "stage_cases", "toy_run", "video_files")

flags.FLAGS.mark_as_parsed()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Caches compiled programs in a folder that all processes of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_addoption(parser):
    parser.addoption("--golden-dir", help="folder of golden cases for test_golden.py")
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if item.get_closest_marker("slow"):  # keywords also have the names of folders
            item.add_marker(skip)


def pytest_collection_finish():
    gc.freeze()  # collections then skip the imported modules


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The manifest of sixteen clips of the synthetic world."""
    spec = WorldSpec(level="simple", size=32, frames=8, seed=0, split="train")
    return write_world(spec, tmp_path_factory.mktemp("world"), 16, progress=False)


@pytest.fixture(scope="session")
def tiny_config(world):
    """Returns a function that makes the tiny config of a stage for six steps on one device."""

    def make(stage):
        config = {"stage1": stage1, "stage2": stage2}[stage].get_config("tiny")
        config.total_steps = 6
        config.init_from_unfinished = True  # Stage 2 starts from step 0 of Stage 1
        config.batch_size = 8
        config.mesh.data = 1
        config.data.update(manifest=str(world), frames=2, workers=0)
        config.encoder.update(depth=2, frames=2)
        config.predictor.depth = 1
        config.optimizer.warmup_steps = 2
        config.checkpoint.every_steps = 3
        config.log.update(every_steps=1, diagnostics_every_steps=0, measure_ceiling=False)
        if stage == "stage1":
            config.decoder.depth = 1
        return config

    return make


@pytest.fixture
def one_device(monkeypatch):
    """Restricts meshes to the first device."""
    hide_devices(monkeypatch)


def hide_devices(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(mesh_lib.jax, "devices", lambda: devices)


@pytest.fixture(scope="session")
def saved_stage1(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved") / "stage1"
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        hide_devices(patch)
        config = ml_collections.FrozenConfigDict(tiny_config("stage1"))
        run = train.prepare(config, workdir, stack)
        run.checkpointer.save(0, run.state, run.position)
    return workdir


@pytest.fixture
def stage1_run(saved_stage1, one_device, tmp_path):
    """The workdir of a Stage 1 run that has saved its initial parameters."""
    return pathlib.Path(shutil.copytree(saved_stage1, tmp_path / "stage1"))


@pytest.fixture
def default_signal_handlers():
    """Sets the default handlers of SIGINT and SIGHUP, which `nohup make test &` ignores."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def list_config(tmp_path):
    """Config of a manifest whose files do not exist, for `FakeLoad`."""
    config = common.data()
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,source\n" + "".join(f"{i}.mp4,a\n" for i in range(fakes.ROWS)))
    config.update(manifest=str(manifest), workers=0, prefetch=4, max_bad_share=1.0)
    return config


@pytest.fixture
def nest_folders():
    """Nests empty folders too deeply for functions that call themselves for each level."""
    made = []

    def nest(folder, levels=1100):
        made.append((folder, levels))
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder):
            for _ in range(levels):
                os.mkdir("d")
                os.chdir("d")

    yield nest
    for folder, levels in made:  # pytest cannot remove them
        # Python 3.13 can remove them, so the test may have done it.
        with contextlib.chdir(folder), contextlib.suppress(FileNotFoundError):
            for _ in range(levels):
                os.chdir("d")
            for _ in range(levels):
                os.chdir("..")
                os.rmdir("d")
