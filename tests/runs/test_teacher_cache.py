"""Stage 1 with stored outputs of the image teacher (`teacher.cache`)."""

import contextlib
import functools
import types

import jax
import ml_collections
import numpy as np
import pytest

from invnext_jax import config_checks, train
from invnext_jax.checkpointing import reader
from invnext_jax.errors import UserError
from invnext_jax.models.patches import normalize
from invnext_jax.monitoring import metrics_file
from invnext_jax.planning import plan
from invnext_jax.stages import image_teacher, registry, teacher_cache
from invnext_jax.stages.output_folder import OutputFolder
from invnext_jax.training import mesh as mesh_lib

VIDEOS = 16


@pytest.fixture
def config(tiny_config, one_device, tmp_path):
    """A run of three epochs over clips that are not augmented, with a cache."""
    config = tiny_config("stage1")
    config.data.augment = False
    config.teacher.cache = str(tmp_path / "cache")
    return config


def read_run(workdir):
    """Returns the losses of all steps, and the final state."""
    losses = [
        {name: value for name, value in record.items() if name.startswith(("loss", "encoder_grad"))}
        for record in metrics_file.read_metrics(workdir)
    ]
    return losses, reader.read_arrays(workdir / "checkpoints/6")


def test_full_and_empty_caches_give_the_run_without_a_cache(config, tmp_path, monkeypatch, capsys):
    traced, applied = [], image_teacher.apply_to_frames

    def apply(config, params, video_bthwc):
        traced.append(video_bthwc.shape[0])
        return applied(config, params, video_bthwc)

    monkeypatch.setattr(image_teacher, "apply_to_frames", apply)
    folder, config.teacher.cache = config.teacher.cache, ""
    train.train(config, tmp_path / "without")
    assert set(traced) == {8}
    config.teacher.cache = folder
    traced.clear()
    config.log.diagnostics_every_steps = 3
    train.train(config, tmp_path / "empty")
    assert set(traced) == {1}  # the step and the diagnostics do not contain the teacher
    output = capsys.readouterr().out
    assert "teacher cache: 0 of 16 clips are stored" in output
    assert "teacher cache: 32 clips read, 16 computed" in output
    monkeypatch.setattr(teacher_cache.TeacherCache, "_compute", None)
    train.train(config, tmp_path / "full")
    output = capsys.readouterr().out
    assert "teacher cache: 16 of 16 clips are stored" in output
    assert "teacher cache: 48 clips read, 0 computed" in output

    without, empty, full = (read_run(tmp_path / name) for name in ("without", "empty", "full"))
    assert {"loss/align_tokens", "loss/align_pooled"} <= without[0][-1].keys()
    jax.tree.map(np.testing.assert_array_equal, empty, full)
    # The teacher is compiled separately, so that its float32 outputs differ by rounding. Adam
    # enlarges the rounding errors of biases whose exact gradient is 0, here to 5e-6.
    for one, other in zip(without[0], full[0], strict=True):
        assert {name: other[name] for name in one} == pytest.approx(one, rel=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5),
        *(state["params"] for _, state in (without, full)),
    )


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return ml_collections.FrozenConfigDict(config)


def open_cache(config, stack, videos=VIDEOS, teacher="a", manifest="b", **changes):
    """Opens the cache of a run without data, for the included teacher."""
    config = changed(config, **changes)
    record = {"frozen_sha256": {"teacher": teacher}, "manifest_sha256": manifest}
    run = types.SimpleNamespace(
        config=config,
        training=registry.make_setup(config),
        frozen={"teacher": image_teacher.read_teacher(config)},
        mesh=mesh_lib.make_mesh(config.mesh),
        data_iter=types.SimpleNamespace(summary=lambda: "data"),
        checkpointer=types.SimpleNamespace(record=record),
    )
    return teacher_cache.open_cache(run, videos, stack)


@pytest.fixture
def batch():
    """Three clips of two frames, from rows 3, 0 and 7."""
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), np.uint8)
    return {"video": video, "index": np.array([3, 0, 7], np.int32)}


@pytest.fixture
def counted(monkeypatch):
    """The number of clips of each call of the teacher."""
    computed, compute = [], teacher_cache.TeacherCache._compute

    def count(self, video_bthwc):
        computed.append(len(video_bthwc))
        return compute(self, video_bthwc)

    monkeypatch.setattr(teacher_cache.TeacherCache, "_compute", count)
    return computed


def test_outputs_are_computed_once_for_the_pixels_of_a_clip(config, batch, counted):
    taught = functools.partial(
        image_teacher.compute_stored, changed(config), image_teacher.read_teacher(config), taps=True
    )
    expected = taught(batch["video"])
    with contextlib.ExitStack() as stack:
        first = open_cache(config, stack).add_outputs(batch)
    with contextlib.ExitStack() as stack:
        cache = open_cache(config, stack)
        again = cache.add_outputs(batch)
        assert counted == [1, 1, 1]
        assert first["teacher_taps"].shape == (3, 2, 2, 16, 96)  # clips, taps, frames, patches, d
        for name, output in expected.items():
            np.testing.assert_allclose(first[name], output, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(first[name], again[name])
        other = {**batch, "video": batch["video"].copy()}
        other["video"][1] = 255 - other["video"][1]
        found = cache.add_outputs(other)
        assert counted == [1, 1, 1, 1]
        np.testing.assert_array_equal(found["teacher_taps"][::2], first["teacher_taps"][::2])
        pooled = taught(other["video"][1:2])["teacher_pooled"]
        np.testing.assert_allclose(found["teacher_pooled"][1:2], pooled, rtol=1e-4, atol=1e-6)
        assert cache.summary() == "data\nteacher cache: 5 clips read, 1 computed"


def test_outputs_do_not_depend_on_the_number_of_devices(tiny_config, batch, counted, tmp_path):
    config, found = tiny_config("stage1"), []
    for devices in (1, 2):
        folder = str(tmp_path / str(devices))
        options = {"data__augment": False, "teacher__cache": folder, "mesh__data": devices}
        with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
            used = jax.devices()[:devices]
            patch.setattr(mesh_lib.jax, "devices", lambda used=used: used)
            found.append(open_cache(config, stack, **options).add_outputs(batch))
    assert counted == [1, 1, 1, 2, 2]
    for name in ("teacher_taps", "teacher_pooled", "teacher_attention"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-6)


def test_bfloat16_taps_have_the_direction_of_the_computed_ones(config, batch):
    rounded = changed(config, dtype="bfloat16")
    params, video_bthwc = image_teacher.read_teacher(rounded), normalize(batch["video"])
    exact = image_teacher.apply_to_frames(rounded, params, video_bthwc)
    stored = image_teacher.compute_stored(rounded, params, batch["video"], taps=True)
    assert {name: str(x.dtype) for name, x in stored.items()} == {
        "teacher_taps": "bfloat16",
        "teacher_pooled": "float32",
        "teacher_attention": "float32",
    }
    output, attention_bts = image_teacher.apply_to_clips(
        rounded, params, video_bthwc, jax.random.key(0), image_teacher.read_stored(stored)
    )
    cosine = np.sum(np.asarray(exact.taps_lbnd * output.taps_lbnd), axis=-1)
    cosine /= np.linalg.norm(output.taps_lbnd, axis=-1)
    assert 1 - 1e-5 < np.min(cosine) < 1
    np.testing.assert_array_equal(output.pooled_bd, exact.pooled_bd)
    np.testing.assert_array_equal(attention_bts.reshape(6, 16), exact.attention_bn)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data__frames": 4, "encoder__frames": 4}, "data.frames '2', but this run has '4'"),
        ({"data__size": 64, "teacher__size": 64}, "data.size '32', but this run has '64'"),
        ({"data__sampling": "dense"}, "data.sampling 'sparse', but this run has 'dense'"),
        ({"dtype": "bfloat16"}, "dtype 'float32', but this run has 'bfloat16'"),
        ({"quantize_frozen": "int8"}, "quantize_frozen '', but this run has 'int8'"),
        ({"teacher__resample": True}, "teacher.resample 'False', but this run has 'True'"),
        ({"loss__align_tokens": 0.0}, "but this run has \"['teacher_attention', 'teacher_pooled']"),
        ({"teacher": "c"}, "SHA-256 of the teacher 'a', but this run has 'c'"),
        ({"manifest": "c"}, "SHA-256 of the manifests 'b', but this run has 'c'"),
    ],
)
def test_caches_for_other_outputs_are_refused(changes, reason, config):
    with contextlib.ExitStack() as stack:
        open_cache(config, stack)
        with pytest.raises(UserError, match=r"config.teacher.cache='.*set it to another") as caught:
            open_cache(config, stack, **changes)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data__augment": True}, "set data.augment=False"),
        ({"teacher__frames_share": 0.5}, "set teacher.frames_share=1 instead of 0.5"),
        ({"teacher__cache": "gs://bucket/cache"}, "must be a folder on a local disk"),
        ({"data__repeats": 2}, "set repeats to 1"),
        (
            {"loss__align_tokens": 0.0, "loss__align_pooled": 0.0, "mask__kind": "random"},
            "no loss, mask or target needs the teacher",
        ),
    ],
)
def test_runs_whose_outputs_cannot_be_stored_are_refused(changes, reason, config):
    with pytest.raises(UserError) as caught:
        plan.check_config(changed(config, **changes), VIDEOS, ["teacher.cache"])
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_several_processes_are_refused(config, monkeypatch):
    monkeypatch.setattr(image_teacher.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="supports one process, but the run has 2"):
        image_teacher.check_teacher(config)


def test_outputs_that_do_not_fit_on_the_disk_are_refused(config, batch, monkeypatch, capsys):
    clip = 36 + 4 * (2 * 96 + 2 * 16 + 2 * 2 * 16 * 96)  # header; pooled, attention and taps

    def limit(clips):
        usage = types.SimpleNamespace(free=clips * clip / 0.9)
        monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage)

    with contextlib.ExitStack() as stack:
        limit(15.9)
        with pytest.raises(UserError, match=r"needs 0.408 MB .* 16 clips \(0.0255 MB each\), more"):
            open_cache(config, stack)
        limit(16.1)
        cache = open_cache(config, stack)
        cache.add_outputs(batch)
        cache.summary()  # waits until they are written
        limit(12.9)
        with pytest.raises(UserError, match="for 13 clips"):
            open_cache(config, stack)
        limit(13.1)
        capsys.readouterr()
        open_cache(config, stack)
    line = capsys.readouterr().out
    assert line.startswith("teacher cache: 3 of 16 clips are stored in ")
    assert line.endswith("a clip needs 0.0255 MB, all clips 0.408 MB\n")


def test_failed_writes_do_not_end_the_run(config, batch, monkeypatch, caplog):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(OutputFolder, "write", fail)
    with contextlib.ExitStack() as stack:
        cache = open_cache(config, stack)
        assert np.isfinite(cache.add_outputs(batch)["teacher_pooled"]).all()
        assert cache.summary().endswith("could not be written (No space left on device)")
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1


def test_plan_counts_no_teacher_but_its_outputs(config):
    stage = registry.find_stage(config)
    with_cache = plan.make_plan(config, "h200", videos=16, devices=1)
    folder, config.teacher.cache = config.teacher.cache, ""
    without = plan.make_plan(config, "h200", videos=16, devices=1)
    assert with_cache["flops"]["teacher"] == 0 < without["flops"]["teacher"]
    difference = without["step_flops"] - with_cache["step_flops"]
    assert difference == without["flops"]["teacher"]
    held = with_cache["held_bytes"]["stored_outputs"]
    assert held == 2 * 8 * 4 * (2 * 96 + 2 * 16 + 2 * 2 * 16 * 96)  # of two batches
    assert without["held_bytes"]["stored_outputs"] == 0
    config.teacher.cache = folder
    assert not config_checks.unused_options(config, stage).keys() & {"teacher.cache"}
