"""Reference rows of tables, differences from them, chance levels, and titles of evaluations."""

import copy

import pytest

from invnext_jax.evaluation import tables
from invnext_jax.evaluation.metrics import formats

CONFIG = {"seed": 0, "knn": {"temperature": 0.07}, "label_propagation": {"height": 64}}


def make_row(name, value, **fields):
    row = {"name": name, "value": value, "evaluator": "knn", "input": "mean", "task": "shape"}
    return {**row, "metric": "top1", "standard_error": 0.01, "n": 50, "classes": 8, **fields}


def make_result(rows, frames=8, **options):
    config = copy.deepcopy(CONFIG)
    for name, value in options.items():
        section, _, option = name.partition("__")
        if option:
            config[section][option] = value
        else:
            config[name] = value
    return {
        **{"stage": "stage1", "tokens": {}, "rows": rows, "run": {"config": config}},
        **{"encoder": {"depth": 2}, "manifests": {"val": "m"}, "videos": {"val": "v"}},
        "clips": {"frames": frames, "size": 64, "short_side": 64, "sampling": "dense", "stride": 2},
    }


def rows_of(table):
    return {row["name"]: row["cells"]["shape"] for row in table["rows"] if row["kind"] != "chance"}


@pytest.mark.parametrize(
    "changes", [{"frames": 4}, {"seed": 1}, {"knn__temperature": 0.1}, {"videos": {"val": "w"}}]
)
def test_gains_are_differences_under_the_same_conditions(changes):
    """Each encoder is compared with the random encoder that has the same clips and options."""
    first = make_result([make_row("encoder", 0.5), make_row("random", 0.4)])
    videos = changes.pop("videos", None)
    second = make_result([make_row("encoder", 0.5), make_row("random", 0.6)], **changes)
    second |= {"videos": videos} if videos else {}
    joined = tables.join_results([first, second])
    (table,) = joined["tables"]
    found = rows_of(table)
    assert found["Stage 1 (1)"]["gain"]["text"] == "+10.0"
    assert found["Stage 1 (2)"]["gain"]["text"] == "-10.0"
    assert found["random initialization"]["text"] == "40.0"
    assert found["random initialization (Stage 1 (2))"]["text"] == "60.0"


def test_options_of_other_evaluators_do_not_matter():
    first = make_result([make_row("encoder", 0.5), make_row("random", 0.4)])
    second = make_result([make_row("encoder", 0.7)], label_propagation__height=0)
    found = rows_of(tables.join_results([first, second])["tables"][0])
    assert found["Stage 1 (2)"]["gain"]["text"] == "+30.0"


def test_different_options_have_a_note():
    rows = [make_row("encoder", 0.5), make_row("random", 0.4)]
    results = [make_result(rows), make_result(rows, knn__temperature=0.1), make_result(rows)]
    assert tables.join_results(results)["notes"] == [
        "config.knn.temperature is 0.07 in Stage 1 (1) and 0.1 in Stage 1 (2) (nearest neighbors), "
        "so each has its own baselines."
    ]


def test_another_value_of_the_same_reference_has_a_note():
    results = [make_result([make_row("encoder", 0.5), make_row("random", x)]) for x in (0.4, 0.6)]
    joined = tables.join_results(results)
    assert rows_of(joined["tables"][0])["random initialization"]["text"] == "40.0"
    assert joined["notes"] == [
        "Random initialization (nearest neighbors, shape) of Stage 1 (2) is 60.0, but the table "
        "shows the first measurement, 40.0."
    ]


def test_references_of_encoders_of_other_sizes_have_separate_rows():
    fields = {"metric": "j_and_f", "evaluator": "label_propagation", "input": "truth"}
    results = [
        make_result([make_row(n, x, **fields) for n, x in values])
        for values in (
            (("encoder", 0.5), ("static", 0.1), ("token_truth", 0.8)),
            (("encoder", 0.6), ("static", 0.1), ("token_truth", 0.9)),
        )
    ]
    results[1]["encoder"] = {"depth": 12}
    found = rows_of(tables.join_results(results)["tables"][0])
    assert found["token truth"]["text"] == "80.0"
    assert found["token truth (Stage 1 (2))"]["text"] == "90.0"
    assert "static (Stage 1 (2))" not in found  # equal to the first one


def test_chance_is_the_stored_one_and_different_levels_are_a_range():
    rows = [make_row("encoder", 0.5, chance=0.2), make_row("encoder", 0.5, task="size")]
    other = [make_row("encoder", 0.5, classes=2), make_row("encoder", 0.5, task="size")]
    for results in ([rows, other], [other, rows]):
        (table,) = tables.join_results([make_result(part) for part in results])["tables"]
        (chance,) = (row["cells"] for row in table["rows"] if row["kind"] == "chance")
        assert chance["shape"]["text"] == "20.0 to 50.0"
        assert chance["size"]["text"] == "12.5"


@pytest.mark.parametrize(
    ("changes", "titles"),
    [
        (({"workdir": "/x/e1"}, {"workdir": "/x/e2"}), ["e1", "e2"]),
        (({"workdir": "/x/e"}, {"workdir": "/y/e"}), ["/x/e", "/y/e"]),
        (
            ({"checkpoint": "runs/a", "step": 1000}, {"checkpoint": "runs/a", "step": 20}),
            ["a, step 1,000", "a, step 20"],
        ),
        (({}, {}), ["1", "2"]),
    ],
)
def test_encoders_of_one_stage_have_distinct_titles(changes, titles):
    results = [{**make_result([make_row("encoder", 0.5)]), **change} for change in changes]
    found = rows_of(tables.join_results(results)["tables"][0])
    assert list(found) == [f"Stage 1 ({title})" for title in titles]


def test_zero_has_no_sign():
    form = formats.find_format("top1")
    assert [form.write(x) for x in (-0.0001, 0.0, -0.001)] == ["0.0", "0.0", "-0.1"]
    assert [form.write_difference(x) for x in (-0.0001, 0.0001, 0.5)] == ["0.0", "0.0", "+50.0"]
