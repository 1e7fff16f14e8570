import pytest

from configs import common
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import sources
from invnext_jax.data.clips import LoadClip
from invnext_jax.errors import UserError

SPELLINGS = [
    "ssv2",
    "SSv2",
    "sthv2",
    "SthV2",
    "sth-sth-v2",
    "something-something-v2",
    "20bn-sth_v2",
]
SPELLINGS += ["Something Something V2", "somethingv2", "something_something", "SSv1", "20bn-sth_v2"]


def make_config(**by_source):
    config = common.data().unlock()
    config.by_source.update(by_source)
    return config


@pytest.mark.parametrize("source", SPELLINGS)
def test_no_spelling_of_something_something_is_mirrored(source, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"path,source\na.mp4,other\nb.mp4,{source}\n")
    load = LoadClip.from_config(make_config(), manifest_lib.read_manifest(path))
    assert not load.by_source.get(source, load.transform).flip
    assert load.by_source.get("other", load.transform).flip
    assert sources.describe_options(make_config(), source) == "sparse, multi_scale, no flip"


@pytest.mark.parametrize("source", ["", "k400", "my_videos", "Kinetics", "ss", "hacs"])
def test_other_sources_are_mirrored_without_a_warning(source, caplog):
    assert sources.options_of(make_config(), source)["flip"]
    sources.check_names(make_config(), [source, "ssv2", "SSv2"])
    assert not caplog.messages


@pytest.mark.parametrize(
    ("source", "near"),
    [
        ("ssv2_train", "ssv2"),
        ("ssv", "ssv2"),
        ("sthv3", "ssv2"),
        ("somethng-v2", "ssv2"),
        ("worlds", "world"),
    ],
)
def test_similar_name_is_a_warning_with_the_nearest_name(source, near, caplog):
    sources.check_names(make_config(), ["k400", source])
    (text,) = caplog.messages
    assert f"the source {source!r} resembles {near!r}" in text


def test_options_of_augmentation_are_unused_without_it(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,source\na.mp4,k400\n")
    config = make_config(k400={"sampling": "dense", "flip": False})
    config.augment = False
    unused = sources.unused_options(config, manifest_lib.read_manifest(path))
    random = {"crop", "crop_scales", "crop_area", "crop_aspect", "jitter", "flip", "short_side"}
    for name in random:
        assert unused[f"data.{name}"].endswith("set it to True")
    assert "config.data.augment is not True" in unused["data.by_source.k400.flip"]
    assert not unused.keys() & {"data.by_source.k400.sampling", "data.stride", "data.augment"}
    assert sources.describe_options(config, "k400") == "dense 4, center crop, not augmented"


def test_entries_of_two_spellings_are_merged_and_the_exact_name_has_priority():
    config = make_config(SSv2={"crop": "random_resized"}, sthv2={"flip": True})
    assert sources.options_of(config, "SSv2")["crop"] == "random_resized"
    assert sources.options_of(config, "sthv2")["flip"] is True
    assert sources.describe_options(config, "k400") == "sparse, multi_scale, flip"
    dense = make_config(a={"sampling": "dense", "stride": (2, 4)}, ssv2={"flip": True})
    assert sources.describe_options(dense, "a") == "dense 2-4, multi_scale, flip"
    assert sources.options_of(dense, "SSv2")["flip"] is True


def test_entry_without_a_source_is_an_error_with_the_sources_of_the_manifest():
    config = make_config(mine={"flip": False})
    sources.check_names(config, ["k400", "mine"])
    with pytest.raises(UserError) as caught:
        sources.check_names(config, ["k400", "mini"])
    assert str(caught.value) == (
        "config.data.by_source has options for 'mine', but the manifest has only the sources "
        "'k400', 'mini': the nearest one is 'mini'"
    )


@pytest.mark.parametrize(
    ("frames", "size", "advice"),
    [
        (8, 32, ""),
        (4, 16, ""),
        (16, 32, "repeated: set frames=16"),
        (4, 64, "enlarged: set size=64"),
        (16, 64, "repeated and enlarged: set frames=16&size=64"),
    ],
)
def test_rendered_worlds_that_are_smaller_than_a_clip_are_noted(frames, size, advice, tmp_path):
    (tmp_path / "list.csv").write_text("path,source\na.mp4,other\n")
    names = "world:simple/train?videos=2", "world:full/train?videos=2&frames=8&size=32"
    manifest = manifest_lib.read_manifest([*names, str(tmp_path / "list.csv")])
    config = make_config()
    config.update(frames=frames, size=size)
    found = sources.describe_worlds(config, manifest.file)
    assert len(found) == (2 if advice else 0)
    for name, sentence in zip(names, found, strict=False):
        assert sentence.startswith(f"{name} has 8 frames of 32 x 32 pixels")
        assert f"which are {advice} to render whole clips" in sentence
