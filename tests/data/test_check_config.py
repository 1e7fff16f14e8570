"""The checks of `config.data`: each error is one sentence that contains the field and its value."""

import pytest

from configs import common
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError


def error_of(**fields):
    config = common.data()
    config.manifest = "list.csv"
    pipeline.check_config(config)
    with pytest.raises(UserError) as caught:
        pipeline.check_config(type(config)({**config.to_dict(), **fields}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("frames", 0), ("workers", -2), ("prefetch", 0), ("repeats", 0), ("shuffle_block_size", -1)],
)
def test_counts_have_a_least_value(field, value):
    assert f"config.data.{field}={value} must be at least" in error_of(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("on_bad", "skip"), ("max_bad_share", 1.5), ("clip_seconds", 0.0)]
)
def test_the_handling_of_bad_videos_is_valid(field, value):
    assert f"config.data.{field}={value!r} must" in error_of(**{field: value})


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (3, "config.data.by_source.mine=3 must be a dict of fields"),
        ({"size": 32}, "config.data.by_source.mine.size: only sampling, stride, crop, "),
        ({"flip": "no"}, "config.data.by_source.mine.flip='no' must be a bool"),
        ({"crop": "all"}, "config.data.by_source.mine.crop='all' must be one of"),
        ({"stride": (4, 2)}, "config.data.by_source.mine.stride=(4, 2) must be two numbers"),
        (
            {"jitter": (1.0,)},
            "config.data.by_source.mine.jitter=(1.0,) must be four non-negative numbers",
        ),
        ({"crop_scales": ()}, "config.data.by_source.mine.crop_scales=() must be fractions"),
    ],
)
def test_overrides_by_source_are_checked_like_the_fields(overrides, text):
    assert text in error_of(by_source={"mine": overrides})


def test_repeats_need_augmentation():
    text = "config.data.repeats=2 clips of a video would be equal, because config.data.augment is"
    assert text in error_of(repeats=2, augment=False)


def test_crops_are_not_larger_than_the_frame():
    assert "config.data.crop_scales=(1.5,)" in error_of(crop_scales=(1.5,))


def test_an_empty_manifest_name_is_refused():
    assert "config.data.manifest is empty" in error_of(manifest="")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling", "thin"),
        ("crop", "square"),
        ("stride", (0, 4)),
        ("stride", (4, 2)),
        ("stride", (4,)),
        ("stride", (1.5, 2)),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.5, 1.5)),
        ("crop_aspect", (2.0, 0.5)),
        ("jitter", (0.4, 0.4, 0.4)),
        ("jitter", (-0.1, 0.0, 0.0, 0.0)),
        ("jitter", (0.0, 0.0, 0.0, 0.6)),
    ],
)
def test_invalid_sampling_and_augmentation_are_refused(field, value):
    assert f"config.data.{field}={value!r}" in error_of(**{field: value})
