"""docs/options.md lists every option of the configs, with its default."""

import importlib.util
import re
from pathlib import Path

import pytest
from config_cases import field_names, value

from configs import stage1, stage2
from configs.eval.tasks import linear_probe
from invnext_jax.checkpointing import run_metadata

ROOT = Path(__file__).parents[2]


def load_generator():
    path = ROOT / "docs/scripts/generate_options.py"
    spec = importlib.util.spec_from_file_location("generate_options", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate_options = load_generator()


def option_rows():
    """Yields the rows of the table of options: name, base, tiny, meaning, and resume rule."""
    for line in (ROOT / "docs/options.md").read_text().split("## Large")[0].splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            yield [name.strip("`"), *cells]


def test_page_agrees_with_the_configs():
    """If this fails, run `python docs/scripts/generate_options.py`."""
    assert (ROOT / "docs/options.md").read_text() == generate_options.make_page()


def test_every_option_of_the_table_exists():
    configs = [stage1.get_config("base"), stage2.get_config("base")]
    rows = list(option_rows())
    assert len(rows) > 15
    for name, *_ in rows:
        assert any(_has(config, name) for config in configs), name


def _has(config, name):
    try:
        value(config, name)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_every_field_has_a_row_and_a_meaning(stage):
    meanings = {row[0]: row[3] for row in option_rows()}
    for name in field_names(stage.get_config("base").to_dict()):
        assert len(meanings[name].split()) > 1, name


def test_every_field_of_an_evaluation_has_a_row_and_a_meaning():
    page = (ROOT / "docs/options.md").read_text().split("## Evaluation: linear_probe\n")[1]
    config = linear_probe.get_config("base").to_dict()
    del config["data"]
    for name in field_names(config):
        (row,) = re.findall(rf"^\| `{name}` \|.*\|.*\| (.+) \|$", page, re.MULTILINE)
        assert len(row.split()) > 1, name


@pytest.mark.parametrize(("variant", "column"), [("base", 1), ("tiny", 2)])
def test_plain_numbers_of_the_table_are_the_defaults(variant, column):
    config, checked = stage1.get_config(variant), 0
    for row in option_rows():
        if re.fullmatch(r"[\d.e-]+", row[column]):  # not text, and the same in both stages
            checked += 1
            assert value(config, row[0]) == pytest.approx(float(row[column])), row[0]
    assert checked > 10


def other(option):
    """Returns a different value of the same type."""
    if isinstance(option, bool):
        return not option
    if isinstance(option, int | float):
        return option + 1
    return (*option, "other") if isinstance(option, tuple) else f"{option}other"


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_resume_column_is_what_a_resumed_run_compares(stage):
    rules = {row[0]: row[4].rstrip(" |") for row in option_rows()}

    def started_run():
        config = stage.get_config("tiny")
        config.init_from = "runs/s1"  # may change if it was set; it cannot be added later
        return config

    saved = run_metadata.describe_run(started_run(), "hash", 1)
    names = [name for name in field_names(started_run().to_dict())]
    for name in names:
        config = started_run()
        if name == "data.by_source":
            config.data.by_source.ssv2.flip = True
        else:
            config.update_from_flattened_dict({name: other(value(config, name))})
        current = run_metadata.describe_run(config, "hash", 1)
        changed = run_metadata.config_differences(saved, current)
        assert rules[name].startswith(("yes", "if ")) == (not changed), (name, changed)
    free = {name for name in names if rules[name].startswith("yes")}
    assert {"accumulate", "remat", "scan_unroll", "attention", "mesh.fsdp", "total_steps"} <= free
    assert not free & {"seed", "batch_size", "dtype", "optimizer.learning_rate", "mask.kind"}
