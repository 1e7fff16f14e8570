"""Checks that docs/architecture.md refers to existing code and that its drawing is current."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from configs import stage1, stage2

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`([\w./]+)`", PAGE)))


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolve(name):
    """Imports `folder.module.attribute` of this package, or of another one that is named first."""
    parts = name.split(".")
    inside = (ROOT / "invnext_jax" / parts[0]).exists()
    inside |= (ROOT / "invnext_jax" / f"{parts[0]}.py").exists()
    for count in range(len(parts), 0, -1):
        module = ".".join([*(["invnext_jax"] if inside else []), *parts[:count]])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def has_field(config, name):
    for part in name.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


def test_drawing_agrees_with_the_imports():
    """If this fails, run `python docs/scripts/draw_imports.py`."""
    drawing = (ROOT / "docs/images/imports.svg").read_text()
    assert drawing == load_script("draw_imports").make_drawing()


@pytest.mark.parametrize("name", [n for n in NAMES if "/" in n or n.endswith((".py", ".md"))])
def test_path_exists(name):
    assert any((ROOT / folder / name).exists() for folder in (".", "invnext_jax")), name


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in NAMES
        if re.fullmatch(r"[a-z_]+(\.\w+)+", n)
        and not n.startswith("config.")
        and not n.endswith((".py", ".md", ".jsonl", ".csv", ".json"))
    ],
)
def test_name_can_be_imported(name):
    resolve(name)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("config.")])
def test_option_exists(name):
    field = name.removeprefix("config.")
    configs = [stage1.get_config("tiny"), stage2.get_config("tiny")]
    assert any(has_field(config, field) for config in configs), name
