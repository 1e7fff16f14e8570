"""Shares and order of sources, and errors of weights."""

import collections

import numpy as np
import pytest

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import mixture
from invnext_jax.errors import UserError

COUNTS = {"a": 600, "b": 1000, "c": 300}  # grain is slow to shuffle fewer


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "list.csv"
    lines = [f"{name}{i}.mp4,{name}\n" for name, count in COUNTS.items() for i in range(count)]
    path.write_text("path,source\n" + "".join(lines))
    return manifest_lib.read_manifest(path)


def order(manifest, weights, count, seed=0, start=0):
    mix = mixture.Mixture(manifest, weights, seed)
    return [mix.get_video(number, 0) for number in range(start, start + count)]


@pytest.mark.parametrize("weights", [(0.3, 0.1, 0.6), (2, 3, 5), (1, 1, 1), (7, 11.5, 0.25)])
def test_shares_of_sources_follow_the_weights(weights, manifest):
    records = order(manifest, tuple(zip("abc", weights, strict=True)), 4000)
    counts = collections.Counter(record.source for record in records)
    for name, weight in zip("abc", weights, strict=True):
        assert counts[name] / 4000 == pytest.approx(weight / sum(weights), rel=0.005, abs=1 / 4000)


def test_each_pass_over_a_source_has_all_its_rows_in_another_order(manifest):
    records = order(manifest, (("a", 1), ("b", 2), ("c", 3)), 6000)
    for name, count in COUNTS.items():
        rows = [record.index for record in records if record.source == name]
        passes = [tuple(rows[i : i + count]) for i in range(0, len(rows) - count + 1, count)]
        assert passes and all(len(set(one)) == count for one in passes)
        assert len(set(passes)) == len(passes)
        assert passes[0] != tuple(sorted(passes[0]))


def test_any_position_is_computed_without_earlier_ones(manifest):
    weights = (("c", 1.0), ("a", 3.0), ("b", 0.5))
    full = order(manifest, weights, 300)
    assert order(manifest, weights, 100, start=200) == full[200:]
    assert order(manifest, weights, 300, seed=1) != full
    assert order(manifest, weights, 1, start=10**9)  # far ahead


def test_without_weights_every_row_occurs_once_in_an_epoch(manifest):
    rows = [record.index for record in order(manifest, (), 3800)]
    assert sorted(rows[:1900]) == sorted(rows[1900:]) == list(range(1900))
    assert rows[:1900] != rows[1900:]


def test_equal_sources_are_not_shuffled_alike(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,source\n" + "".join(f"{s}{i},{s}\n" for s in "ab" for i in range(300)))
    records = order(manifest_lib.read_manifest(path), (("a", 1), ("b", 1)), 600)
    rows = {s: [r.index for r in records if r.source == s] for s in "ab"}
    assert [row + 300 for row in rows["a"]] != rows["b"]


def test_substitutes_follow_the_shares(manifest):
    mix = mixture.Mixture(manifest, (("a", 1), ("b", 6), ("c", 3)), seed=0)
    counts = collections.Counter(mix.get_video(n, a).source for n in range(300) for a in (1, 2, 3))
    deviation = np.sqrt(900 * 0.25)
    for name, share in (("a", 0.1), ("b", 0.6), ("c", 0.3)):
        assert abs(counts[name] - 900 * share) < 4 * deviation
    assert len({mix.get_video(n, 1).index for n in range(300)}) > 200


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ((("a", 1.0), ("b", 1.0)), "no weight for the source 'c'"),
        ((("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)), "no source 'd', only 'a', 'b', 'c'"),
        ((("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 1.0)), "the source 'a' twice"),
        ((("a", 0.0), ("b", 1.0), ("c", 1.0)), r"\('a', 0.0\) must be"),
        ((("a", -1), ("b", 1.0), ("c", 1.0)), "above 0"),
        ((("a", float("nan")), ("b", 1.0), ("c", 1.0)), "above 0"),
        ((("a", "1"), ("b", 1.0), ("c", 1.0)), "above 0"),
        (("a", "b", "c"), "'a' must be a source and a weight"),
        ((1.0, 2.0, 3.0), "1.0 must be a source and a weight"),
    ],
)
def test_errors_of_weights_are_one_sentence(weights, text, manifest):
    with pytest.raises(UserError, match=text) as caught:
        mixture.Mixture(manifest, weights, 0)
    assert "\n" not in str(caught.value)


def test_table_contains_rows_shares_and_epochs(manifest):
    mix = mixture.Mixture(manifest, (("a", 1), ("b", 3), ("c", 1)), seed=0)
    head, *lines = mix.table(clips=30_000).splitlines()
    assert head.split() == ["source", "rows", "share", "epochs"]
    assert [line.split() for line in lines] == [
        ["a", "600", "20.00%", "10.00"],
        ["b", "1,000", "60.00%", "18.00"],
        ["c", "300", "20.00%", "20.00"],
    ]
    plain = mixture.Mixture(manifest, (), seed=0).table(clips=3800).splitlines()
    assert [line.split()[-1] for line in plain[1:]] == ["2.00"] * 3
