"""Checks that docs/deviations.md and the comments in the code list the same deviations."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_files_that_differ_from_the_reference_are_listed_in_the_docs():
    package = ROOT / "invnext_jax"
    marked = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "Differs from reference" in path.read_text()
    }
    listed = re.findall(r"\(`(\w+/\w+\.py)`\)", (ROOT / "docs" / "deviations.md").read_text())
    assert marked == set(listed)
