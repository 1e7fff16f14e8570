"""Devices that split the tokens exchange heads: the result, and the number of all-to-alls."""

import functools

import jax
import numpy as np
import pytest
from attention_cases import check, draw

from configs import common
from invnext_jax.models import attention
from invnext_jax.training import mesh as mesh_lib


@pytest.mark.parametrize("sizes", [(2, 1, 2, 2), (1, 1, 1, 8)])
@pytest.mark.parametrize(("window", "keys"), [(None, None), (8, None), (None, 260)])
@pytest.mark.parametrize("chosen", ["splash", "blockwise"])
def test_devices_that_exchange_heads_compute_the_same(sizes, window, keys, chosen):
    config = common.defaults().mesh
    config.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    mesh = mesh_lib.make_mesh(config)
    with mesh_lib.mesh_rules(mesh, "all_to_all"), attention.kernel(chosen):
        check(attention.attend, 141, window, 2e-5, batch=4, heads=8, keys=keys)
        *parts, _ = draw(141, batch=4, heads=8, keys=keys)
        traced = jax.make_jaxpr(lambda *parts: attention.attend(*parts, window))(*parts)
    assert str(traced).count(" all_to_all[") == 4  # queries, keys, values and the output


@pytest.mark.parametrize("chosen", ["splash", "blockwise"])
def test_rotary_positions_and_padding_are_those_of_all_tokens(chosen):
    """With theta, positions are those in the clip; keys after `length` are padding."""
    q, k, v, _ = draw(128, heads=4)
    length = 100 if chosen == "splash" else None
    attend = functools.partial(attention.attend, theta=100.0, length=length)
    with attention.kernel("naive"):
        expected = attend(q, k, v)
    config = common.defaults().mesh
    config.update(data=1, fsdp=1, tensor=2, sequence=2)
    mesh = mesh_lib.make_mesh(config, jax.devices()[:4])
    with mesh_lib.mesh_rules(mesh, "all_to_all"), attention.kernel(chosen):
        actual = jax.jit(attend)(q, k, v)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_heads_that_no_device_can_split_are_gathered():
    config = common.defaults().mesh
    config.update(data=2, fsdp=1, tensor=1, sequence=4)
    with mesh_lib.mesh_rules(mesh_lib.make_mesh(config), "all_to_all"):
        check(attention.attend, 37, None, 2e-5, batch=4, heads=2)
