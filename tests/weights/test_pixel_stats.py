"""Pixel statistics in the files of preprocessors next to weights."""

import json

import pytest

from invnext_jax.errors import UserError
from invnext_jax.models import teachers
from invnext_jax.weights.pixel_stats import check_pixel_stats, read_pixel_stats

HALF = [0.5, 0.5, 0.5]


def check(kind, source):
    check_pixel_stats(source, f"a {kind} teacher", teachers.PIXEL_STATS[kind])


@pytest.mark.parametrize(
    ("kind", "mean"),
    [("clip", HALF), ("siglip2", [0.485, 0.456, 0.406]), ("dinov2", "x")],
)
def test_teachers_with_other_pixel_statistics_are_refused(kind, mean, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": mean}))
    with pytest.raises(UserError, match="has image_mean=.* but the pixels for a .* are normal"):
        check(kind, tmp_path)
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.269, 0.261, 0.276]}
    path.write_text(json.dumps(clip))
    check("clip", tmp_path / "model.safetensors")


def test_preprocessors_in_the_file_of_a_processor_are_read(reference, tmp_path):
    """`CLIPProcessor.save_pretrained` writes only this file."""
    processor = reference(lambda hf: hf.models.CLIPImageProcessor().to_dict())
    content = {"image_processor": processor}
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(content))
    check("clip", tmp_path)
    content["image_processor"]["image_mean"] = HALF
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="processor_config.json, image_processor has image_mean"):
        check("clip", tmp_path)
    assert read_pixel_stats(tmp_path)["mean"] == HALF


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_normalize": False}, "do_normalize=False, but only True is supported"),
        ({"do_rescale": False}, "do_rescale=False, but only True is supported"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078.*, but only 1/255 is supported"),
        ({"rescale_factor": "x"}, "rescale_factor=x"),
        ({"offset": True}, "offset=True, but only False is supported"),
    ],
)
def test_preprocessors_with_other_steps_are_refused(tmp_path, content, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        check("siglip2", tmp_path)
    with pytest.raises(UserError, match=message):
        read_pixel_stats(tmp_path)


def test_files_with_different_values_are_refused(tmp_path):
    for name, value in (("preprocessor_config.json", HALF), ("processor_config.json", None)):
        content = {"image_mean": value} if value else {"video_processor": {"image_mean": [0.4] * 3}}
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="have different values of image_mean: keep only the file"):
        read_pixel_stats(tmp_path)


def test_pixel_statistics_are_those_of_imagenet_or_of_the_folder(tmp_path):
    assert read_pixel_stats(tmp_path)["mean"] == [0.485, 0.456, 0.406]
    content = {"image_mean": [0.5, 0.5, 0], "image_std": [0.25, 1, 0.5], "do_rescale": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert read_pixel_stats(tmp_path) == {"mean": [0.5, 0.5, 0], "std": [0.25, 1, 0.5]}
    part = json.dumps({"image_std": [0.25, 1, 0.5]})
    (tmp_path / "video_preprocessor_config.json").write_text(part)
    assert read_pixel_stats(tmp_path)["mean"] == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\], which is not three numbers"),
        ({"image_mean": 0.5}, "image_mean=0.5"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
        ({"image_std": ["a", 1, 1]}, "image_std"),
    ],
)
def test_invalid_pixel_statistics_are_refused(tmp_path, content, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_pixel_stats(tmp_path)
