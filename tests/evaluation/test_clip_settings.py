"""Notes about clips that differ from those of the training, also in single sources."""

import pytest

from invnext_jax.evaluation import clip_settings, exporter, pretrained

BASE = {"frames": 8, "size": 32, "sampling": "sparse", "stride": (4, 4), "by_source": {}}
DENSE = {"sampling": "dense", "stride": (1, 3)}


def make_clips(**changes):
    """Settings of an evaluation, without those of the encoder."""
    data = {**BASE, **changes}
    found = {"frames": data["frames"], "size": data["size"], "short_side": 32}
    found |= clip_settings._read_sampling(data)
    return {**found, "by_source": clip_settings._read_sources(data)}


@pytest.mark.parametrize(
    ("training", "evaluation", "note"),
    [
        ({}, {}, ""),
        ({"by_source": {"world": DENSE}}, {"by_source": {"world": DENSE}}, ""),
        ({"by_source": {"world": {"flip": False}}}, {}, ""),
        (
            {"by_source": {"world": DENSE}},
            {},
            "sparse sampling ('world': dense sampling with stride 2), but sparse sampling of "
            "'world'.",
        ),
        (
            {},
            {"by_source": {"world": DENSE}},
            "sparse sampling, but dense sampling with stride 2 of 'world'.",
        ),
        (
            {"by_source": {"world": DENSE}},
            DENSE,
            "('world': dense sampling with stride 2), but config.data.sampling=dense.",
        ),
        (DENSE, {**DENSE, "stride": (4, 4)}, "dense sampling with stride 2, but config.data.stri"),
        ({"by_source": {"ssv2": DENSE}}, {"by_source": {"sth_sth_v2": DENSE}}, ""),
    ],
)
def test_sampling_of_sources_is_compared(training, evaluation, note):
    notes = clip_settings.compare_with_training(
        make_clips(**evaluation), {"data": {**BASE, **training}}
    )
    assert (note in notes[0]) if note else not notes


def test_settings_of_sources_are_described():
    text = clip_settings.describe_clips(make_clips(by_source={"world": DENSE}))
    assert "sparse sampling ('world': dense sampling with stride 2), short side 32" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": "dense", "stride": 4},
        {"sampling": "dense", "stride": ["a"]},
        {"by_source": 1},
        {"by_source": {"world": 1}},
        {"by_source": {"world": {"sampling": "dense", "stride": None}}},
    ],
)
def test_damaged_sampling_of_a_checkpoint_is_not_compared(changes):
    config = {"data": {**BASE, **changes}}
    assert clip_settings.compare_with_training(make_clips(**DENSE), config) == []
    (note,) = clip_settings.compare_with_training(make_clips(frames=4), config)
    assert "clips of 8 frames of 32 x 32 pixels, but config.data.frames=4." in note


@pytest.mark.parametrize("export_format", ["ours", "internvideo_next"])
def test_exports_know_the_sampling_of_the_training_clips(export_format, stage1_run, tmp_path):
    out = tmp_path / ("out.safetensors" if export_format == "ours" else "published")
    exporter.export_run(stage1_run, out, export_format=exporter.ExportFormat(export_format))
    run, exported = (pretrained.load_params(path)[1].to_dict() for path in (stage1_run, out))
    other = {"sparse": "dense", "dense": "sparse"}[run["data"]["sampling"]]
    clips = {**run["data"], "sampling": other, "stride": None, "by_source": {}}
    (note,) = clip_settings.compare_with_training(clips, run)
    assert f"config.data.sampling={other}" in note
    assert clip_settings.compare_with_training(clips, exported) == [note]
