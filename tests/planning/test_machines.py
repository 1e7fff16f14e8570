"""The presets of configs/machines.py fit, and docs/real_run.md has their plans."""

import importlib.util
import pathlib

import pytest

from configs import common, machines, stage1, stage2
from invnext_jax.errors import UserError
from invnext_jax.models import scan
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import mesh_checks

ROOT = pathlib.Path(__file__).parents[2]
STAGES = {"stage1": stage1, "stage2": stage2}
VARIANTS = ("base", "large", "1b")
SET_BY_PRESETS = {"accumulate", "remat", "mesh", "data", "log", "checkpoint"}


def load_generator():
    path = ROOT / "docs/scripts/generate_presets.py"
    spec = importlib.util.spec_from_file_location("generate_presets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rarely(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("stage", "variant"),
    [
        *(("stage1", "base"), ("stage2", "1b")),
        *(rarely("stage1", "large"), rarely("stage1", "1b")),
        *(rarely("stage2", "base"), rarely("stage2", "large")),
    ],
)
def test_presets_fit_and_the_page_has_their_plans(stage, variant):
    """If the page differs, run `python docs/scripts/generate_presets.py`."""
    generator, page = load_generator(), (ROOT / "docs/real_run.md").read_text()
    a100, *presets = generator.plan_presets(stage, variant)
    assert [preset.machine for preset in presets] == list(machines.MACHINES)
    for preset in presets:
        assert preset.plan["fits"]
        assert preset.plan["peak_bytes"] <= 0.8 * preset.plan["memory_bytes"], preset.machine
        assert generator.format_row(stage, variant, preset) in page
    paper = generator.PAPER_A100_HOURS.get((stage, variant))
    number = int(stage[-1])
    assert generator.format_a100_row(number, variant, a100, paper) in page


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_presets_divide_the_batch_of_the_paper_and_keep_its_recipe(stage, variant):
    plain = STAGES[stage].get_config(variant)
    for name, machine in machines.MACHINES.items():
        config = STAGES[stage].get_config(f"{variant},{name}")
        mesh = mesh_lib.make_abstract_mesh(config.mesh, machine["devices"])
        mesh_checks.check_batch(config, mesh)
        assert config.batch_size % machine["hosts"] == 0
        changed = {field for field in plain if plain[field] != config[field]}
        assert changed <= SET_BY_PRESETS
        plain.data.workers = config.data.workers
        assert plain.data == config.data


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="no preset 'h100x3' for the variant 'base': choose one"):
        stage1.get_config("base,h100x3")
    with pytest.raises(ValueError, match="no preset 'h100x8' for the variant 'tiny': remove it"):
        stage2.get_config("tiny,h100x8")


def test_teacher_presets_change_only_the_teacher():
    plain = stage1.get_config("base,h200x8")
    assert plain == stage1.get_config("base,h200x8,siglip2_giant")
    for name in ("siglip2_so400m", "siglip2_large", "clip_large", "dinov2_large"):
        config = stage1.get_config(f"base,{name},h200x8")
        assert {field for field in plain if plain[field] != config[field]} == {"teacher"}
        assert dict(common.TEACHERS[name]).items() <= config.teacher.to_dict().items()
        config.teacher.weights = "teacher.safetensors"
        registry.find_stage(config).check_config(config)
    with pytest.raises(ValueError, match="no preset 'siglip3' .*: choose one of .*siglip2_so400m"):
        stage1.get_config("base,siglip3")


def test_taps_cover_the_same_part_of_every_teacher():
    # The paper's taps of the giant teacher: its inputs of layers 39 to 23, and 39 to 31 for Large.
    for variant, deepest in (("base", 16 / 40), ("large", 8 / 40)):
        for name in ("siglip2_giant", "siglip2_so400m", "siglip2_large"):
            t = stage1.get_config(f"{variant},{name}").teacher
            taps = scan.select_tap_layers(t.depth, t.taps, t.tap_interval)
            assert len(set(taps)) == 6 and taps[-1] == t.depth - 1
            assert (taps[-1] - taps[0]) / t.depth == pytest.approx(deepest, abs=1 / t.depth)


def test_abstract_meshes_have_the_checks_of_meshes():
    config = stage1.get_config("base,h100x8")
    assert dict(mesh_lib.make_abstract_mesh(config.mesh, 8).shape)["fsdp"] == 8
    with pytest.raises(UserError, match="does not match the 6 available devices"):
        mesh_lib.make_abstract_mesh(config.mesh, 6)
