"""Hypothesis profiles, few fixed examples or many random ones, and a folder for their files.

The command for many: FUZZ_PROFILE=large python -m pytest tests/fuzz
"""

import os

import pytest

try:
    import hypothesis
except ImportError:  # the environment may be older than the lock file
    collect_ignore_glob = ["test_*.py"]
else:
    HEALTH = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
    COMMON = {"deadline": None, "suppress_health_check": HEALTH, "database": None}
    hypothesis.settings.register_profile("ci", max_examples=60, derandomize=True, **COMMON)
    hypothesis.settings.register_profile("large", max_examples=5000, **COMMON)
    hypothesis.settings.load_profile(os.environ.get("FUZZ_PROFILE", "ci"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")
