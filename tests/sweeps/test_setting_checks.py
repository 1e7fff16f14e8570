"""--set does not replace the values that the arms of a sweep vary."""

import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps.arms import Arm, Step, chain, grid, make_arm, with_seeds
from invnext_jax.sweeps.commands import parse_settings
from invnext_jax.sweeps.expansion import expand
from invnext_jax.sweeps.setting_checks import check_conflicts
from invnext_jax.sweeps.sweep_file import Sweep

CHAIN = chain(stage1="configs/stage1.py:tiny", stage2="configs/stage2.py:tiny")
STEPS = chain(stage1="configs/stage1.py:tiny", probe="configs/eval/tasks/linear_probe.py:tiny")


def check(arms, setting):
    check_conflicts(parse_settings([setting]), arms)


@pytest.mark.parametrize("scope", ["train", "stage1"])
def test_an_option_that_the_arms_vary_is_not_replaced(scope):
    arms = [make_arm(STEPS, point) for point in grid({"stage1.mask.ratio": (0.6, 0.9)})]
    with pytest.raises(UserError, match=r"would replace mask.ratio=0.6 of the arm 'ratio=0.6'"):
        check(arms, f"{scope}.mask.ratio=0.8")
    with pytest.raises(UserError, match=r"would replace mask.ratio=0.9"):
        check(arms, f"{scope}.mask.ratio=0.6")
    check(arms, f"{scope}.mask.kind=tube")
    check(arms, "eval.batch_size=4")


def test_an_option_that_only_one_arm_sets_is_not_replaced():
    arms = [Arm("a", STEPS), make_arm(STEPS, {"stage1.target.kind": "momentum", "name": "b"})]
    with pytest.raises(UserError, match=r"would replace target.kind=momentum of the arm 'b'"):
        check(arms, "stage1.target.kind=image")
    check(arms, "stage1.target.kind=momentum")


def test_a_value_in_the_name_of_the_only_arm_is_not_replaced():
    arms = [make_arm(STEPS, {"stage1.mask.ratio": 0.6, "stage1.batch_size": 8})]
    with pytest.raises(UserError, match="of the arm 'ratio=0.6, batch_size=8'"):
        check(arms, "train.batch_size=16")


def test_seeds_are_not_replaced():
    arms = with_seeds([Arm("a", STEPS)], (3,))
    with pytest.raises(UserError, match="would replace seed=3 of the arm 'a'"):
        check(arms, "train.seed=5")
    check(arms, "train.seed=3")


def test_an_override_that_all_arms_share_is_replaced():
    manifest = {"stage1.data.manifest": "data/kmash.csv"}
    arms = [
        make_arm(STEPS, {**manifest, "stage1.batch_size": size, "name": f"batch {size}"})
        for size in (8, 16)
    ]
    check(arms, "train.data.manifest=/data/kmash.csv")
    root = Step("k400", "configs/eval/tasks/linear_probe.py:tiny", {"data.root": "data/k400"})
    other = Step("ssv2", "configs/eval/tasks/linear_probe.py:tiny", {"data.root": "data/ssv2"})
    check([Arm("a", (root, other)), Arm("b", (root, other))], "k400.data.root=/data/k400")


def expand_arm(tmp_path, arm, settings):
    return expand(Sweep("a.py", (arm,), {}), tmp_path / "sweep", parse_settings(settings))


def test_the_order_of_settings_does_not_matter(tmp_path, caplog):
    settings = ["train.epochs=3", "train.total_steps=-1"]
    for ordered in (settings, settings[::-1]):
        _, configs = expand_arm(tmp_path, make_arm(CHAIN, {}), ordered)
        trainings = [config.config for config in configs.values() if config.label != "eval"]
        assert [(c.epochs, c.total_steps) for c in trainings] == [(3.0, -1)] * 2
    assert not caplog.text


def test_steps_in_which_a_setting_has_no_effect_are_logged(tmp_path, caplog):
    expand_arm(tmp_path, make_arm(CHAIN, {}), ["train.mask.ratio=0.5"])
    assert "--set=train.mask.ratio=0.5 has no effect in the step stage2: " in caplog.text
    assert "stage1" not in caplog.text


@pytest.mark.parametrize(("option", "value"), [("variant", "base"), ("stage", "stage2")])
def test_the_config_file_of_a_step_is_not_chosen_by_an_option(option, value, tmp_path):
    arms = [make_arm(STEPS, point) for point in grid({f"stage1.{option}": (value,)})]
    sentence = rf"'stage1' of a sweep sets {option}='{value}', which has no effect: choose the"
    with pytest.raises(UserError, match=sentence):
        expand(Sweep("mine.py", tuple(arms), {}), tmp_path)
    settings = parse_settings([f"train.{option}={value}"])
    with pytest.raises(UserError, match=sentence):
        expand(Sweep("mine.py", (Arm("a", STEPS),), {}), tmp_path, settings)
