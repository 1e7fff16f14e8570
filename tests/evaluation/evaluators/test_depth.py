"""Depth heads on the synthetic world and on folders in the layouts of ScanNet and KITTI."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
from einops import rearrange
from oracle_encoder import add_places, balance, make_blind, make_inputs, make_truth_oracle, resolve
from truth_layouts import write_kitti, write_scannet

from configs.eval.tasks import depth as depth_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense.truth_clips import TruthClips
from invnext_jax.evaluation.evaluators.depth import Depth
from invnext_jax.evaluation.feature_store import extraction

PATCH, SIZE, FRAMES = 8, 16, 2
WORLD = f"simple?videos=96&size={SIZE}&frames={FRAMES}"
FULL = WORLD.replace("simple", "full")
SETTINGS = {
    **{"width": 32, "heads": 2, "batch_size": 16, "epochs": 40.0},
    **{"learning_rates": (1e-2,), "weight_decays": (1e-4,)},
}


def get_config(encoder, settings=None, world=WORLD, **changes):
    config = depth_config.get_config("tiny")
    config.depth.update({**SETTINGS, **(settings or {})})
    return resolve(config, encoder, world, **{"batch_size": 16, **changes})


def evaluate(encoder, folder, config, name="encoder"):
    rows = Depth().evaluate(make_inputs(config, encoder, folder, name), config)
    return {(row.name, row.metric): row for row in rows}


def code_depth(truth):
    """Makes tokens that contain the depth of their pixels and their position."""
    pattern = "m t (a p) (b q) -> m t (a b) (p q)"
    depth_mtnd = rearrange(truth["depth"] - 5, pattern, p=PATCH, q=PATCH)
    return balance(add_places(depth_mtnd))


@pytest.fixture(scope="module")
def blind():
    return make_blind(patch=PATCH, size=SIZE, frames=FRAMES)


@pytest.fixture(scope="module")
def oracle(blind):
    config = get_config(blind)
    return make_truth_oracle(config.depth, config, code_depth, PATCH)


def test_an_oracle_is_accurate_and_constant_depth_is_not(oracle, tmp_path):
    found = evaluate(oracle, tmp_path, get_config(oracle))
    row, best = found["encoder", "delta1"], found["pixel_mean", "abs_rel"]
    assert row.value >= 0.95 > found["constant", "delta1"].value
    assert found["encoder", "abs_rel"].value < 0.5 * best.value
    assert found["encoder", "aligned_abs_rel"].value < 0.5 * best.value
    assert (row.task, row.input, row.n) == ("world depth", "attention head", 96)
    assert 0 < row.standard_error < 0.05


def test_a_blind_encoder_learns_the_mean_of_each_pixel(blind, tmp_path):
    found = evaluate(blind, tmp_path, get_config(blind, {"epochs": 20.0}, FULL))
    for metric in ("abs_rel", "aligned_abs_rel"):
        expected = found["pixel_mean", metric].value
        assert found["encoder", metric].value == pytest.approx(expected, abs=0.01)


def test_scores_depend_neither_on_the_batch_size_nor_on_devices(oracle, tmp_path, monkeypatch):
    settings = {"epochs": 2.0}
    expected = evaluate(oracle, tmp_path, get_config(oracle, settings))
    # The heads were saved by the first call. Training them again would fail.
    only_first = functools.partial(refuse_later_steps, TruthClips.batch)
    monkeypatch.setattr(TruthClips, "batch", lambda *arguments: only_first(*arguments))
    monkeypatch.setattr(extraction.jax, "local_devices", lambda: jax.devices()[:1])
    found = evaluate(oracle, tmp_path, get_config(oracle, settings, batch_size=7))
    for key, row in expected.items():
        np.testing.assert_allclose(found[key].scores.score_b, row.scores.score_b, rtol=1e-5)


def refuse_later_steps(read, clips, step, batch_size, seed):
    """Returns the batch of step 0, which is used to initialize the head; fails for later steps."""
    assert step == 0
    return read(clips, step, batch_size, seed)


def test_a_grid_reports_the_head_that_held_out_videos_select(oracle, tmp_path):
    settings = {"epochs": 2.0, "learning_rates": (1e-5, 1e-2), "held_out": 0.25}
    config = get_config(oracle, settings)
    rows = Depth().evaluate(make_inputs(config, oracle, tmp_path, "random"), config)
    assert {row.input for row in rows} == {"attention head", "attention head, best on val"}
    assert {row.name for row in rows} == {"random"}
    assert all(row.details["learning_rate"] == 1e-2 for row in rows)


@pytest.mark.slow
def test_dpt_head_with_the_loss_that_ignores_scale_has_aligned_rows(blind, tmp_path):
    settings = {
        "head": "dpt",
        "loss": "video",
        "epochs": 1.0,
        "warmup_epochs": 0.0,
        "dpt_temporal": False,
    }
    sizes = {"dpt_channels": (4, 4, 8, 8), "dpt_width": 8, "dpt_groups": 4}
    config = get_config(blind, {**settings, **sizes})
    found = evaluate(blind, tmp_path, config)
    metrics = {metric for name, metric in found if name == "encoder"}
    assert metrics == {"aligned_abs_rel", "aligned_delta1"}
    assert found["encoder", "aligned_abs_rel"].value < 0.5


@pytest.mark.parametrize(("data", "write"), [("scannet", write_scannet), ("kitti", write_kitti)])
def test_folders_of_real_data_sets_are_evaluated(tmp_path, data, write):
    encoder = make_blind(patch=PATCH, size=32, frames=4)
    root = write(tmp_path / data)
    if data == "scannet":
        shutil.copy(root / "val.txt", root / "train.txt")
        (root / "scans" / "scene0001_00" / "depth" / "3.png").unlink()
    else:
        shutil.copytree(root / "val", root / "train")
    settings = {"data": data, "root": str(root), "stride": 4, "epochs": 2.0, "memory_gb": 0.0}
    config = get_config(encoder, settings, world="")
    Depth().check_config(config)
    found = evaluate(encoder, tmp_path / "out", config)
    row = found["encoder", "abs_rel"]
    assert np.isfinite(row.value) and row.n == (2 if data == "scannet" else 1)
    assert row.task == {"scannet": "ScanNet depth", "kitti": "KITTI depth"}[data]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": "nyu"}, "data='nyu' must be one of"),
        ({"data": "kitti"}, "config.depth.root is empty"),
        ({"head": "mlp"}, "head='mlp' must be one of"),
        ({"loss": "l1"}, "loss='l1' must be one of"),
        ({"learning_rates": (-1.0,)}, r"config.depth.learning_rates=\(-1.0,\) must be positive"),
        ({"output_frames": 3}, "output_frames=3 must be 1 or 2"),
        ({"head": "dpt", "dpt_groups": 7}, "divisible by dpt_groups=7"),
        ({"warmup_epochs": 30.0}, "less than epochs"),
        ({"heads": 5}, "width=64 must be divisible by"),
    ],
)
def test_invalid_options_are_refused(changes, text):
    config = depth_config.get_config("tiny")
    config.depth.update(changes)
    with pytest.raises(UserError, match=text):
        Depth().check_config(config)


def test_a_head_that_needs_more_layers_is_refused(blind, tmp_path):
    shallow = dataclasses.replace(blind, depth=3)
    with pytest.raises(UserError, match="needs four layers"):
        evaluate(shallow, tmp_path, get_config(shallow, {"head": "dpt"}))
