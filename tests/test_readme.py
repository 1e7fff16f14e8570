"""What the README says of options, files and commands is there."""

import re
from pathlib import Path

import pytest

from configs import stage1, stage2

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def option_rows():
    """The rows of the table of options: names in full, text of the columns Base and tiny."""
    for line in section("The options").splitlines():
        if not line.startswith("| `"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names, room = [], ""
        for name in re.findall(r"`([\w.]+)`", cells[0]):
            room = name.rpartition(".")[0] or room
            names.append(name if "." in name or not room else f"{room}.{name}")
        yield names, cells[1], cells[2]


def value(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def test_every_option_of_the_table_exists():
    configs = [stage1.get_config("base"), stage2.get_config("base")]
    rows = list(option_rows())
    assert len(rows) > 15
    for names, _, _ in rows:
        for name in names:
            assert any(_has(config, name) for config in configs), name


def _has(config, name):
    try:
        value(config, name)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize(("variant", "column"), [("base", 1), ("tiny", 2)])
def test_plain_numbers_of_the_table_are_the_defaults(variant, column):
    config, checked = stage1.get_config(variant), 0
    for row in option_rows():
        names, numbers = row[0], row[column].split(", ")
        if len(names) != len(numbers) or not all(re.fullmatch(r"[\d.e-]+", n) for n in numbers):
            continue  # words, or one number for each stage
        for name, number in zip(names, numbers, strict=True):
            checked += 1
            assert value(config, name) == pytest.approx(float(number)), name
    assert checked > 10


def test_every_file_of_the_map_exists():
    folder, found = ROOT, 0
    for line in section("Map of the code").split("```")[1].splitlines():
        name = line.split(" ")[0] if line[:1].strip() else line.split()[0] if line.strip() else ""
        if line[:1].strip():
            folder = ROOT
        if name:
            assert (folder / name).exists(), name
            found += 1
        if line[:1].strip() and name.endswith("/"):
            folder = ROOT / name
    assert found > 12


def test_every_command_names_a_script_and_a_config_that_exist():
    commands = re.findall(r"python (launch/\w+\.py)(.*)", README)
    assert len(commands) >= 8
    for script, rest in commands:
        assert (ROOT / script).is_file(), script
        for config in re.findall(r"--config=([\w/.]+)", rest):
            assert (ROOT / config).is_file(), config
