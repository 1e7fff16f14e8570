"""The build steps of the Dockerfile are those of the README."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def run_steps():
    """The commands of all RUN instructions."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    runs = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    return [" ".join(step.split()) for run in runs for step in run.split("&&")]


def readme_steps():
    section = (ROOT / "README.md").read_text().split("\n## Install\n")[1].split("```")[1]
    lines = [line.partition("#")[0].strip() for line in section.splitlines()]
    return [step.strip() for line in lines if line for step in line.split("&&")]


def test_steps_are_those_of_the_readme():
    *steps, activate, device = run_steps()
    *expected, cuda = readme_steps()
    assert steps == expected
    assert activate == ". .venv/bin/activate"
    assert cuda == "pip install -e '.[cuda]'"
    assert device == 'if [ "$DEVICE" != cpu ]; then pip install -e ".[$DEVICE]"; fi'


def test_devices_are_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.search(r"DEVICE: cpu \(default\), (\w+) or (\w+)", DOCKERFILE).groups()
    assert set(named) <= set(extras["optional-dependencies"])


def test_copied_files_exist_and_are_not_ignored():
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = set()
    for line in DOCKERFILE.splitlines():
        if line.startswith("COPY "):
            copied |= set(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
