"""The sweeps of configs/sweeps are complete and expand to valid jobs."""

import pytest

from configs import ablations
from configs.sweeps import paper
from invnext_jax.sweeps import commands
from invnext_jax.sweeps.step_config import Kind

SWEEPS = ("lr.py", "mask_ratio.py", "sizes.py")


def expand(source, tmp_path):
    return commands.expand_request(commands.Request(f"configs/sweeps/{source}"), tmp_path)


def test_every_row_of_the_ablations_has_published_values():
    assert set(paper.PUBLISHED) == set(ablations.ROWS) | {"3_stage1"}


@pytest.fixture(scope="module")
def all_tables(tmp_path_factory):
    return expand("paper.py:all", tmp_path_factory.mktemp("sweep"))


def test_all_tables_train_each_model_once(all_tables):
    sweep, configs = all_tables
    assert len(sweep.arms) == len(paper.PUBLISHED)
    stages = [config.label for config in configs.values() if config.kind is Kind.TRAIN]
    different = {ablations.get_config(row).to_json() for row in ablations.ROWS}
    assert len(stages) == len(different)
    full = {arm.jobs["stage1"] for arm in sweep.arms if "stage2" in arm.jobs}
    named = {arm.jobs["stage1"] for arm in sweep.arms if arm.name in ("both", "stage1", "siglip")}
    assert len(full) == 1 and full == named


def test_published_values_belong_to_columns(all_tables):
    sweep, _ = all_tables
    for arm in sweep.arms:
        steps = {sweep.columns[title].step for title in arm.reference}
        assert steps == set(arm.jobs) - {"stage1", "stage2"}, arm.name
    both = next(arm for arm in sweep.arms if arm.name == "both")
    assert both.reference == {"K400": 75.8, "SSv2": 36.9} and both.is_baseline


def test_each_table_has_one_baseline(all_tables):
    groups = {}
    for arm in all_tables[0].arms:
        groups.setdefault(arm.group, []).append(arm.is_baseline)
    assert len(groups) == 6 and all(marks.count(True) == 1 for marks in groups.values())


def test_probes_of_table_4_have_the_frames_of_their_row(all_tables):
    sweep, configs = all_tables
    frames = {
        arm.name: configs[arm.jobs["k400"]].config.data.frames
        for arm in sweep.arms
        if arm.group.startswith("Table 4")
    }
    assert frames["stage1_8f"] == frames["stage2_semantic"] == 8
    assert frames["stage2_16f"] == 16 and frames["stage1_32f"] == 32


def test_tiny_tables_need_no_other_files_than_the_world(tmp_path):
    sweep, configs = expand("paper.py:all,tiny", tmp_path)
    assert all("data/world" in path for path in commands.find_missing_files(configs))
    groups = {}
    for arm in sweep.arms:
        groups.setdefault(arm.group, []).append(arm)
    assert len(groups) == 6 and all(len(arms) > 1 for arms in groups.values())
    for arms in groups.values():
        assert [arm.is_baseline for arm in arms].count(True) == 1
    assert all(not arm.reference for arm in sweep.arms)


@pytest.mark.parametrize("variant", ["tiny", "base"])
@pytest.mark.parametrize("file", SWEEPS)
def test_other_sweeps_expand(file, variant, tmp_path):
    sweep, configs = expand(f"{file}:{variant}", tmp_path)
    assert [arm.is_baseline for arm in sweep.arms].count(True) == 1
    jobs = {arm.jobs["stage1"] for arm in sweep.arms}
    assert len(jobs) == len(sweep.arms)  # the arms differ
    assert set(sweep.columns) == (
        {"shape", "color", "motion"} if variant == "tiny" else {"K400", "SSv2"}
    )


def test_batches_of_the_rate_sweep_see_the_same_videos(tmp_path):
    sweep, configs = expand("lr.py:base", tmp_path)
    seen = {
        round(sweep.jobs[name].total_steps * configs[name].config.batch_size / 1e6)
        for name in configs
        if configs[name].kind is Kind.TRAIN
    }
    assert len(seen) == 1


@pytest.mark.parametrize("source", ["lr.py:huge", "sizes.py:huge", "paper.py:table1a,huge"])
def test_unknown_variants_are_user_errors(source, tmp_path):
    with pytest.raises(commands.UserError, match="unknown variant 'huge'"):
        expand(source, tmp_path)


@pytest.mark.parametrize("variant, split", [("test", "test"), ("val", "val"), ("toy", "test")])
def test_the_study_shares_stage_1_and_evaluates_one_split(variant, split, tmp_path):
    sweep, configs = expand(f"study.py:{variant}", tmp_path)
    jobs = {}
    for arm in sweep.arms:
        jobs.setdefault(arm.group, []).append(arm.jobs)
        manifests = configs[arm.jobs["probes"]].config
        assert "/train?" in manifests.train_manifest
        assert f"/{split}?" in manifests.val_manifest
    first = jobs["Stages"][0]["stage1"]
    assert {job["stage1"] for job in jobs["Targets of Stage 2"]} == {first}
    assert len({job["stage1"] for job in jobs["Components of Stage 1"]} - {first}) == 4
    assert len({job["stage2"] for job in jobs["Targets of Stage 2"]}) == 6
    assert jobs["Teachers of Stage 1"][0]["stage1"] == first
    assert len({job["stage1"] for job in jobs["Teachers of Stage 1"]}) == 3
    assert jobs["Masks"][0] == jobs["Stages"][0] and jobs["Masks"][3] == jobs["Stages"][1]
