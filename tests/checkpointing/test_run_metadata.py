import json
import pathlib

import pytest

from configs import stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.data import manifest


@pytest.fixture
def record(toy_config):
    return describe(toy_config)


def describe(config):
    return run_metadata.describe_run(config, manifest.hash_manifests(config.data.manifest))


def differences(record, config, **more):
    return run_metadata.config_differences(record, {**describe(config), **more})


def test_record_holds_config_versions_and_counts(record, toy_config):
    assert record["config"]["encoder"]["width"] == toy_config.encoder.width
    assert {"python", "jax", "flax", "orbax-checkpoint", "grain", "numpy"} <= set(
        record["versions"]
    )
    assert record["process_count"] == 1
    assert record["format_version"] == 2


def test_same_config_has_no_differences(record, toy_config):
    assert differences(record, toy_config) == []


def test_fields_that_change_the_result_are_differences(record, toy_config):
    toy_config.encoder.width = 96
    toy_config.seed = 7
    assert differences(record, toy_config) == [
        f"config.encoder.width: {record['config']['encoder']['width']} -> 96",
        "config.seed: 0 -> 7",
    ]


def test_fields_that_do_not_change_the_result_are_no_differences(record, toy_config):
    toy_config.total_steps = 99
    toy_config.mesh.data = 4
    toy_config.log.every_steps = 7
    toy_config.checkpoint.keep_last = 5
    toy_config.data.update(workers=5, prefetch=1, clip_seconds=5.0, on_bad="fail")
    assert differences(record, toy_config) == []


def test_runs_have_equal_hashes_if_one_can_resume_the_other(record, toy_config):
    record["init_from_sha256"] = {"encoder": "e", "predictor": "p"}
    expected = run_metadata.hash_run(record)
    toy_config.total_steps = 99
    toy_config.data.workers = 5
    older = dict(record["config"])
    older["mask"] = {k: v for k, v in older["mask"].items() if k != "predicted"}
    for config in (describe(toy_config)["config"], older):
        assert run_metadata.hash_run({**record, "config": config}) == expected
    export = {**record, "init_from_sha256": {"encoder": "e"}}
    assert run_metadata.hash_run(export) == expected
    toy_config.seed = 5
    for changes in (
        {"config": describe(toy_config)["config"]},
        {"init_from_sha256": {"encoder": "f", "predictor": "p"}},
        {"manifest_sha256": "m"},
        {"frozen_sha256": {"teacher": "t"}},
    ):
        assert run_metadata.hash_run(record | changes) != expected


def test_manifest_may_move_but_not_change(record, toy_config, tmp_path):
    text = pathlib.Path(toy_config.data.manifest).read_text()
    toy_config.data.manifest = str(tmp_path / "moved.csv")
    (tmp_path / "moved.csv").write_text(text)
    assert differences(record, toy_config) == []
    (tmp_path / "moved.csv").write_text(text + "b.mp4,toy\n")
    (change,) = differences(record, toy_config)
    assert change.startswith("content of the manifest (SHA-256): ")


def test_every_manifest_is_compared(record, toy_config, tmp_path):
    first = toy_config.data.manifest
    (tmp_path / "b.csv").write_text("path,source\nb.mp4,toy\n")
    toy_config.data.manifest = f"{first},file://{tmp_path}/b.csv, world:simple?videos=3"
    assert len(differences(record, toy_config)) == 1
    record = describe(toy_config)
    assert differences(record, toy_config) == []
    (tmp_path / "b.csv").write_text("path,source\nc.mp4,toy\n")
    assert len(differences(record, toy_config)) == 1
    (tmp_path / "b.csv").write_text("path,source\nb.mp4,toy\n")
    toy_config.data.manifest = f"{first},{tmp_path}/b.csv,world:simple?videos=4"
    assert len(differences(record, toy_config)) == 1


def test_frozen_parameters_are_compared_by_content(toy_config):
    def describe(teacher, path):
        toy_config.teacher.weights = path
        return run_metadata.describe_run(toy_config, "m", frozen_sha256={"teacher": teacher})

    saved = describe("a", "old/place.safetensors")
    moved = describe("a", "new/place.safetensors")
    assert run_metadata.config_differences(saved, moved) == []
    (change,) = run_metadata.config_differences(saved, describe("b", "new/place.safetensors"))
    assert change == "SHA-256 of the frozen teacher: 'a' -> 'b'"


def test_without_a_hash_the_path_of_the_teacher_is_compared(toy_config):
    saved = run_metadata.describe_run(toy_config, "m")
    del saved["frozen_sha256"]  # as in a checkpoint of an older version
    toy_config.teacher.weights = "new/place.safetensors"
    current = run_metadata.describe_run(toy_config, "m", frozen_sha256={"teacher": "a"})
    (change,) = run_metadata.config_differences(saved, current)
    assert change == "config.teacher.weights: 'assets' -> 'new/place.safetensors'"


def test_number_of_processes_is_no_difference(record, toy_config):
    assert differences(record, toy_config, process_count=2) == []


def test_added_or_removed_field_is_a_difference(record, toy_config):
    record["config"]["old"] = 1
    assert differences(record, toy_config) == ["config.old: 1 -> 'absent'"]


def test_upgraded_config_of_format_2_has_all_current_fields():
    fixture = pathlib.Path(__file__).parents[1] / "fixtures/checkpoint_v2/checkpoints/2"
    saved = json.loads((fixture / "meta/metadata").read_text())["config"]
    config = run_metadata.config_from_json(saved)
    current = stage1.get_config("tiny").to_dict()
    assert run_metadata.flatten(config.to_dict()).keys() == run_metadata.flatten(current).keys()
    assert config.accumulate == 1 and config.ema.decay == 0 and config.data.repeats == 1
    assert config.data.by_source.to_dict() == {"ssv2": {"flip": False}, "world": {"flip": False}}
    assert "no_flip_sources" in saved["data"]  # the argument is not modified


def test_upgrading_an_exported_part_adds_no_sections():
    assert run_metadata.upgrade_config({"encoder": {"width": 3}}) == {"encoder": {"width": 3}}


def test_changed_no_flip_sources_are_a_difference(record, toy_config):
    del record["config"]["data"]["by_source"]
    record["config"]["data"]["no_flip_sources"] = ["ssv2"]
    assert differences(record, toy_config) == [
        "config.data.by_source.world.flip: 'absent' -> False"
    ]


def test_saved_config_has_no_secrets_of_addresses(toy_config):
    toy_config.data.manifest = "https://me:password@host/a.csv?sig=abc,world:simple?videos=3"
    saved = run_metadata.config_to_json(toy_config)
    manifests = "https://REDACTED@host/a.csv?sig=REDACTED,world:simple?videos=3"
    assert saved["data"]["manifest"] == manifests
    assert toy_config.data.manifest.startswith("https://me:password@")
