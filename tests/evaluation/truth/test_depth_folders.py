"""Readers of ScanNet and KITTI, tested with depth of the synthetic world in their layouts."""

import shutil

import numpy as np
import pytest
import truth_layouts
from PIL import Image

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.depth_folders import Kitti, ScanNet
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.video import frame_converter


@pytest.fixture(scope="module")
def scannet_folder(tmp_path_factory):
    return truth_layouts.write_scannet(tmp_path_factory.mktemp("scannet"))


@pytest.fixture(scope="module")
def kitti_folder(tmp_path_factory):
    return truth_layouts.write_kitti(tmp_path_factory.mktemp("kitti"))


@pytest.fixture
def scannet(scannet_folder, tmp_path):
    return shutil.copytree(scannet_folder, tmp_path / "scannet")


@pytest.fixture
def kitti(kitti_folder, tmp_path):
    return shutil.copytree(kitti_folder, tmp_path / "kitti")


def test_windows_of_scannet_slide_over_each_scene(scannet):
    truth = ScanNet(scannet, size=32)
    # 20 frames: windows of 16 that start at 0 only; the next one would start at 5.
    assert [truth.window(row).frames[0] for row in range(len(truth))] == [0, 0]
    truth = ScanNet(scannet, size=32, frames=8, stride=5)
    starts = [truth.window(row).frames[0] for row in range(len(truth))]
    assert starts == [0, 5, 10] * 2
    np.testing.assert_array_equal(truth.videos, [0, 0, 0, 1, 1, 1])


def test_depth_of_scannet_is_in_meters_and_belongs_to_the_frames(scannet):
    truth = ScanNet(scannet, size=32, frames=8, stride=5)
    found, clip = truth.load(4), render_clip(truth_layouts.SPEC, 1)
    np.testing.assert_array_equal(found["video"], clip.video[5:13])
    np.testing.assert_allclose(found["depth"], clip.depth[5:13], atol=6e-4)
    assert found["depth"].dtype == np.float32


def test_scannet_frames_may_be_larger_than_depth(scannet):
    for path in (scannet / "scans").glob("*/color/*.png"):
        with Image.open(path) as image:
            large = image.resize((64, 64), Image.Resampling.NEAREST)
        large.save(path)
    found = ScanNet(scannet, size=32, frames=4).load(0)
    assert found["video"].shape == (4, 32, 32, 3)
    np.testing.assert_allclose(
        found["depth"], render_clip(truth_layouts.SPEC, 0).depth[:4], atol=6e-4
    )


def test_windows_of_kitti_are_within_the_annotated_frames(kitti):
    truth = Kitti(kitti, size=32, frames=8, stride=2)
    starts = [truth.window(row).frames[0] for row in range(len(truth))]
    assert starts == [5, 7, 9]  # frames 5 to 17 have depth
    found, clip = truth.load(1), render_clip(truth_layouts.SPEC, 0)
    wide = truth_layouts.widen(clip.video, 2)[7:15]
    window = frame_converter.square_crop(32, 64)
    np.testing.assert_array_equal(found["video"], frame_converter.resize(wide, window, 32))
    expected = truth_layouts.widen(clip.depth, 2)[7:15, :, 16:48].astype(float)
    expected[:, ::2] = 0
    np.testing.assert_allclose(found["depth"], expected, atol=2e-3)


def test_kitti_depth_may_be_next_to_the_frames_with_a_list_of_drives(kitti):
    (drive,) = (kitti / "val").iterdir()
    shutil.move(drive / "proj_depth", kitti / drive.name[:10] / drive.name / "proj_depth")
    with pytest.raises(UserError, match="list of drives"):
        Kitti(kitti, frames=8)
    (kitti / "val.txt").write_text(f"{drive.name}\n")
    assert len(Kitti(kitti, frames=8, stride=2)) == 3


def damage(path, what):
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif what == "missing":
        path.unlink()
    elif what == "8 bits":
        Image.new("L", (32, 32)).save(path)
    elif what == "other size":
        Image.new("RGB", (16, 32)).save(path)
    elif what == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("what", "folder", "kind"),
    [
        ("truncated", "depth", "truncated"),
        ("empty", "depth", "truncated"),
        ("missing", "depth", "missing"),
        ("8 bits", "depth", "wrong format"),
        ("truncated", "color", "truncated"),
        ("other size", "color", "wrong format"),
    ],
)
def test_a_damaged_file_costs_only_its_windows(scannet, what, folder, kind):
    path = scannet / "scans" / "scene0000_00" / folder / "9.png"
    damage(path, what)
    truth = ScanNet(scannet, size=32, frames=8, stride=5)
    for row, bad in enumerate([False, True, False, False, False, False]):
        if not bad:
            truth.load(row)
            continue
        with pytest.raises(BadTruth) as caught:
            truth.load(row)
        assert caught.value.kind == kind and "9.png" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_frame_leaves_a_gap(scannet):
    (scannet / "scans" / "scene0000_00" / "color" / "9.png").unlink()
    with pytest.raises(BadTruth, match="frame 9 is missing"):
        ScanNet(scannet, size=32, frames=8, stride=5).load(1)


def test_windows_without_known_depth_are_bad(scannet):
    for path in (scannet / "scans" / "scene0000_00" / "depth").iterdir():
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)
    with pytest.raises(BadTruth, match="no known depth"):
        ScanNet(scannet, size=32).load(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val.txt").unlink(), "val.txt cannot be read .No such file"),
        (lambda root: (root / "val.txt").write_text("\n"), "val.txt is empty"),
        (lambda root: (root / "val.txt").write_bytes(b"\xff\xfe\x00"), "not text"),
        (lambda root: (root / "val.txt").write_text("scene9999_00"), "extract the scene"),
        (lambda root: shutil.rmtree(root / "scans/scene0001_00/depth"), "scene0001_00"),
        (lambda root: shutil.rmtree(root / "scans/scene0001_00/color"), "check the layout"),
    ],
)
def test_a_wrong_layout_is_one_sentence(scannet, change, message):
    change(scannet)
    with pytest.raises(UserError, match=message) as caught:
        ScanNet(scannet)
    assert "\n" not in str(caught.value)


def test_scenes_that_are_too_short_are_refused(scannet, kitti):
    with pytest.raises(UserError, match="at least 21 frames"):
        ScanNet(scannet, frames=21)
    with pytest.raises(UserError, match="at least 32 frames"):
        Kitti(kitti)
