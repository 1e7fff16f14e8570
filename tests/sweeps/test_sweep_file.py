"""Sweep files are found, called with their arguments, and checked."""

import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps.sweep_file import load_sweep

FILE = """
from invnext_jax.sweeps.arms import Arm, Column, Step, chain, grid, make_arm

CHAIN = chain(stage1="configs/stage1.py:tiny")
COLUMNS = {"loss": Column("stage1", "loss")}

def sweep(size="small"):
    yield {"stage1.batch_size": {"small": 16, "big": 64}[size]}

def sweep_grid(*values):
    yield from grid({"stage1.mask.ratio": [float(v) for v in values] or [0.5], "seed": (0, 1)})

def sweep_twice():
    yield {"name": "a"}
    yield {"name": "a"}

def sweep_nothing():
    return ()

def sweep_no_steps():
    yield Arm("a", ())

def sweep_forgets_to_yield():
    grid({"stage1.batch_size": (1, 2)})

def sweep_returns_a_dict():
    return {"stage1.batch_size": 1}

def sweep_yields_text():
    yield "stage1.batch_size=1"

def sweep_two_baselines():
    yield make_arm(CHAIN, {"name": "a"}, is_baseline=True)
    yield make_arm(CHAIN, {"name": "b"}, is_baseline=True)

def sweep_two_tables():
    for group in ("A", "B"):
        for seed in (0, 1):
            fields = {"is_baseline": True, "group": group, "reference": {"loss": 1}}
            yield make_arm(CHAIN, {"name": f"of {group}", "seed": seed}, **fields)

def sweep_unknown_reference():
    yield make_arm(CHAIN, {}, reference={"los": 1.0})

def sweep_text_reference():
    yield make_arm(CHAIN, {}, reference={"loss": "3.5"})

def sweep_number_name():
    yield {"name": 3}

def sweep_long_name():
    yield {"name": "x" * 501}

def sweep_float_seed():
    yield {"seed": 1.0}

def sweep_baseline_text():
    yield make_arm(CHAIN, {}, is_baseline="yes")

def sweep_unknown_field():
    yield make_arm(CHAIN, {}, baseline=True)

def sweep_refuses():
    raise ValueError("choose better")
    yield
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    return str(file)


def test_the_function_sweep_is_the_default(path):
    sweep = load_sweep(path)
    assert [arm.name for arm in sweep.arms] == ["batch_size=16"]
    assert list(sweep.columns) == ["loss"]
    assert load_sweep(f"{path}:big").arms[0].name == "batch_size=64"


def test_a_named_sweep_gets_arguments(path):
    arms = load_sweep(f"{path}:grid,0.1,0.2").arms
    assert [(arm.name, arm.seed) for arm in arms] == [
        *(("ratio=0.1", 0), ("ratio=0.1", 1), ("ratio=0.2", 0), ("ratio=0.2", 1))
    ]


def test_each_table_has_its_own_baseline(path):
    arms = load_sweep(f"{path}:two_tables").arms
    assert [(arm.group, arm.seed) for arm in arms] == [("A", 0), ("A", 1), ("B", 0), ("B", 1)]


def test_seeds_of_the_command_line_repeat_arms(path):
    assert [arm.seed for arm in load_sweep(path, (3, 4)).arms] == [3, 4]
    assert [arm.seed for arm in load_sweep(f"{path}:grid", (3, 4)).arms] == [0, 1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("twice", "two arms named 'a': rename one"),
        ("two_baselines", "two baselines in one table, 'a' and 'b': set is_baseline for one"),
        (
            "unknown_reference",
            "published value for 'los', which is not a column: choose one of loss",
        ),
        ("text_reference", "has the published value 'loss': '3.5', which must be a finite number"),
        ("long_name", "an arm of .* has name='xxx.*, which is not a line of 1 to 500 printable"),
        ("number_name", "has name=3, which must be text: correct it"),
        ("float_seed", "has seed=1.0, which must be an integer or None"),
        ("baseline_text", "has is_baseline='yes', which must be True or False"),
        ("unknown_field", "make_arm has no argument 'baseline': the fields of an arm are name, "),
        ("nothing", "has no arms"),
        ("no_steps", "has no steps: define CHAIN"),
        ("refuses", "choose better"),
        ("forgets_to_yield", "sweep_forgets_to_yield of .* returns NoneType instead of arms"),
        ("returns_a_dict", "returns dict instead of arms: let it yield them, or return a list"),
        ("yields_text", "yields 'stage1.batch_size=1', which is not an arm"),
        ("big,bigger", "arguments that sweep does not accept"),
    ],
)
def test_invalid_sweeps_are_user_errors(path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_sweep(f"{path}:{name}")


def test_unknown_files_and_sweeps_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="there is no sweep file"):
        load_sweep(str(tmp_path / "missing.py"))
    with pytest.raises(UserError, match=r"choose one of these: .*paper.py:table1a"):
        load_sweep("configs/sweeps/paper.py:table9")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('CHAIN = {"stage1": "configs/stage1.py:tiny"}', "CHAIN in .* is not a chain of steps"),
        ('COLUMNS = {"loss": "stage1"}', "COLUMNS in .* must be a dict from titles to `Column`"),
        ("COLUMNS = [Column('stage1')]", "COLUMNS in .* must be a dict"),
    ],
)
def test_chains_and_columns_of_wrong_types_are_user_errors(path, line, sentence):
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=sentence):
        load_sweep(path)
