"""Grids, products and arms of sweep files."""

import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps.arms import Arm, Step, chain, grid, make_arm, product, with_seeds

STEPS = chain(stage1="configs/stage1.py:tiny", probe=Step("", "configs/eval/world.py", {"a": 1}))


def test_grid_has_all_combinations_in_order():
    points = grid({"stage1.batch_size": (16, 32), "seed": (0, 1)})
    assert points == [
        {"stage1.batch_size": 16, "seed": 0},
        {"stage1.batch_size": 16, "seed": 1},
        {"stage1.batch_size": 32, "seed": 0},
        {"stage1.batch_size": 32, "seed": 1},
    ]


def test_grids_and_lists_compose():
    rows = [{"stage1.mask.kind": "tube"}, {"stage1.mask.kind": "random", "stage1.mask.ratio": 0.9}]
    points = product(rows, grid({"stage1.mask.ratio": (0.5, 0.6)}))
    assert len(points) == 4
    assert points[2] == {"stage1.mask.kind": "random", "stage1.mask.ratio": 0.5}


def test_chain_names_its_steps():
    assert [step.name for step in STEPS] == ["stage1", "probe"]
    assert STEPS[1].overrides == {"a": 1}


def test_overrides_of_an_arm_reach_their_steps():
    arm = make_arm(STEPS, {"stage1.optimizer.clip_norm": 1.0, "probe.b": 2, "seed": 3})
    assert arm.steps[0].overrides == {"optimizer.clip_norm": 1.0}
    assert arm.steps[1].overrides == {"a": 1, "b": 2}
    assert (arm.name, arm.seed) == ("clip_norm=1.0, b=2", 3)


def test_names_have_the_step_where_options_are_ambiguous():
    arm = make_arm(STEPS, {"stage1.seed": 1, "probe.seed": 2})
    assert arm.name == "stage1.seed=1, probe.seed=2"
    assert make_arm(STEPS, {}).name == "default"
    assert make_arm(STEPS, {"probe.b": 2, "name": "mine"}).name == "mine"


@pytest.mark.parametrize("name", ["batch_size", "stage9.batch_size", "stage1"])
def test_an_override_of_no_step_is_a_user_error(name):
    with pytest.raises(UserError, match=r"must start with the name of a step \(stage1, probe\)"):
        make_arm(STEPS, {name: 1})


def test_seeds_repeat_arms_without_a_seed():
    arms = with_seeds([Arm("a", STEPS), Arm("b", STEPS, seed=7)], (0, 1))
    assert [(arm.name, arm.seed) for arm in arms] == [("a", 0), ("a", 1), ("b", 7)]


@pytest.mark.parametrize("values", ["1e-3", 8])
def test_values_of_a_grid_must_be_a_sequence(values):
    with pytest.raises(UserError, match="of stage1.a must be a sequence"):
        grid({"stage1.a": values})
