import pathlib

import pytest

from invnext_jax.runtime import provenance


@pytest.fixture
def record(toy_config):
    return provenance.describe_run(toy_config)


def changes(record, config, **more):
    return provenance.differences(record, {**provenance.describe_run(config), **more})


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
    record = provenance.describe_run(toy_config)
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
