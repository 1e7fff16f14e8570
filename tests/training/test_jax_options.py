"""Options of JAX that change random numbers are refused before anything is computed."""

import jax
import pytest

from configs import stage1
from configs.eval.tasks import linear_probe
from invnext_jax import config_checks
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate
from invnext_jax.training import jax_options

OPTIONS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 1,
}


@pytest.fixture
def change(request):
    name = request.param
    before = getattr(jax.config, name)
    jax.config.update(name, OPTIONS[name])
    yield name
    jax.config.update(name, before)


@pytest.mark.parametrize("change", OPTIONS, indirect=True)
def test_other_options_of_jax_are_refused(change, tmp_path):
    match = f"{change.upper()} .*{change}={OPTIONS[change]!r}, .*unset the variable, or set it to"
    with pytest.raises(UserError, match=match):
        config_checks.check_config(stage1.get_config("tiny"))
    with pytest.raises(UserError, match=match):
        evaluate.evaluate_checkpoint(linear_probe.get_config("tiny"), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_the_defaults_of_jax_pass():
    jax_options.check_options()
