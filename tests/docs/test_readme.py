"""Files, options and commands that the README names exist."""

import re
from pathlib import Path

from configs import stage1, stage2

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_file_of_the_map_exists():
    folder, found = ROOT, 0
    for line in section("Map of the code").split("```")[1].strip().splitlines():
        names = re.match(r" *([^\s,]+(?:, [^\s,]+)*)", line)[1].split(", ")
        folder = folder if line.startswith(" ") else ROOT
        for name in names:
            assert (folder / name).exists(), name
            found += 1
        if not line.startswith(" "):
            folder = ROOT / names[0]
    assert found > 20


def test_every_link_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_command_names_a_script_and_a_config_that_exist():
    commands = re.findall(r"python (launch/\w+\.py)(.*)", README)
    assert len(commands) >= 8
    for script, rest in commands:
        assert (ROOT / script).is_file(), script
        for config in re.findall(r"--config=([\w/.]+)", rest):
            assert (ROOT / config).is_file(), config


def test_every_option_exists():
    configs = [stage1.get_config("tiny"), stage2.get_config("tiny")]
    names = set(re.findall(r"--config\.([\w.]+)=", README)) - {"checkpoint"}  # of the probe config
    assert len(names) >= 5
    for name in names:
        group, _, field = name.rpartition(".")
        groups = [config[group] if group else config for config in configs]
        assert any(field in fields for fields in groups), name


def test_length():
    assert len(README.splitlines()) <= 150
