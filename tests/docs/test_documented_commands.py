"""Scripts, flags, configs and options in the commands of docs pages exist."""

import functools
import importlib.util
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("real_run.md", "adapt.md")
SETTINGS = {"$SIZE": "base", "$MACHINE": "h200x8", "$DEVICE": "h200"}


def commands(page):
    """Yields the script and the flags of each command."""
    text = (ROOT / "docs" / page).read_text()
    for name, value in SETTINGS.items():
        text = text.replace(name, value)
    for block in text.split("```")[1::2]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("python launch/"):
                _, script, *rest = shlex.split(line)
                yield script, [part for part in rest if part.startswith("--")]


def defined_flags(script):
    return set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", (ROOT / script).read_text()))


@functools.cache
def load_config(given):
    path, colon, argument = given.partition(":")
    spec = importlib.util.spec_from_file_location("documented_config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[argument] if colon else [])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_flags_and_options_that_exist(page):
    found = list(commands(page))
    assert len(found) > 3
    for script, flags in found:
        known, config = defined_flags(script), None
        for flag in flags:
            name, _, value = flag.removeprefix("--").partition("=")
            if name == "config":
                config = load_config(value)
            elif name.startswith("config."):
                *groups, field = name.removeprefix("config.").split(".")
                section = functools.reduce(lambda tree, group: tree[group], groups, config)
                assert field in section, f"{script} {flag}"
            else:
                assert name in known | {"config"}, f"{script} {flag}"
