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


def changes(record, config, **more):
    return run_metadata.config_differences(record, {**describe(config), **more})


def test_the_record_holds_config_versions_and_counts(record, toy_config):
    assert record["config"]["encoder"]["width"] == toy_config.encoder.width
    assert {"python", "jax", "flax", "orbax-checkpoint", "grain", "numpy"} <= set(
        record["versions"]
    )
    assert record["process_count"] == 1
    assert record["format_version"] == 2


def test_the_same_config_has_no_differences(record, toy_config):
    assert changes(record, toy_config) == []


def test_what_changes_the_result_is_a_difference(record, toy_config):
    toy_config.encoder.width = 96
    toy_config.seed = 7
    assert changes(record, toy_config) == [
        f"config.encoder.width: {record['config']['encoder']['width']} -> 96",
        "config.seed: 0 -> 7",
    ]


def test_what_does_not_change_the_result_is_none(record, toy_config):
    toy_config.total_steps = 99
    toy_config.mesh.data = 4
    toy_config.log.every_steps = 7
    toy_config.checkpoint.keep_last = 5
    toy_config.data.update(workers=5, prefetch=1, clip_seconds=5.0, on_bad="fail")
    assert changes(record, toy_config) == []


def test_a_manifest_may_move_but_not_change(record, toy_config, tmp_path):
    text = pathlib.Path(toy_config.data.manifest).read_text()
    toy_config.data.manifest = str(tmp_path / "moved.csv")
    (tmp_path / "moved.csv").write_text(text)
    assert changes(record, toy_config) == []
    (tmp_path / "moved.csv").write_text(text + "b.mp4,toy\n")
    (change,) = changes(record, toy_config)
    assert change.startswith("SHA-256 of the manifest: ")


def test_every_manifest_named_is_compared(record, toy_config, tmp_path):
    first = toy_config.data.manifest
    (tmp_path / "b.csv").write_text("path,source\nb.mp4,toy\n")
    toy_config.data.manifest = f"{first},file://{tmp_path}/b.csv, world:simple?videos=3"
    assert len(changes(record, toy_config)) == 1
    record = describe(toy_config)
    assert changes(record, toy_config) == []
    (tmp_path / "b.csv").write_text("path,source\nc.mp4,toy\n")
    assert len(changes(record, toy_config)) == 1
    (tmp_path / "b.csv").write_text("path,source\nb.mp4,toy\n")
    toy_config.data.manifest = f"{first},{tmp_path}/b.csv,world:simple?videos=4"
    assert len(changes(record, toy_config)) == 1


def test_another_number_of_processes_is_no_difference(record, toy_config):
    assert changes(record, toy_config, process_count=2) == []


def test_a_field_that_is_new_or_gone_is_a_difference(record, toy_config):
    record["config"]["old"] = 1
    assert changes(record, toy_config) == ["config.old: 1 -> 'absent'"]


def test_a_config_of_the_first_code_of_format_2_has_the_fields_of_today():
    fixture = pathlib.Path(__file__).parents[1] / "fixtures/checkpoint_v2/checkpoints/2"
    saved = json.loads((fixture / "meta/metadata").read_text())["config"]
    config = run_metadata.config_from_json(saved)
    today = stage1.get_config("tiny").to_dict()
    assert run_metadata._flatten(config.to_dict()).keys() == run_metadata._flatten(today).keys()
    assert config.accumulate == 1 and config.ema.decay == 0 and config.data.repeats == 1
    assert config.data.by_source.to_dict() == {"ssv2": {"flip": False}, "world": {"flip": False}}
    assert "no_flip_sources" in saved["data"]  # what is read is left as it is


def test_the_part_of_a_config_that_an_export_has_gets_no_new_sections():
    assert run_metadata.upgrade_config({"encoder": {"width": 3}}) == {"encoder": {"width": 3}}


def test_another_list_of_sources_that_are_not_flipped_is_a_difference(record, toy_config):
    del record["config"]["data"]["by_source"]
    record["config"]["data"]["no_flip_sources"] = ["ssv2"]
    assert changes(record, toy_config) == ["config.data.by_source.world.flip: 'absent' -> False"]
