import struct
import zlib

import numpy as np
import pytest
import truth_layouts
from scipy import io

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.joints import JhmdbJoints
from invnext_jax.evaluation.truth.truth import BadTruth


@pytest.fixture
def positions(tmp_path):
    return truth_layouts.write_jhmdb(tmp_path)


def matrix(tmp_path):
    return tmp_path / "joint_positions" / "wave" / "clip_0" / "joint_positions.mat"


def test_joints_are_pixels_of_the_whole_frames(tmp_path, positions):
    truth = JhmdbJoints(tmp_path)
    assert truth.clips == [("wave", "clip_0")]
    found = truth.load(0)
    assert found["video"].shape == (20, 32, 64, 3)
    expected = np.transpose(positions["clip_0"], (2, 1, 0)) - 1
    np.testing.assert_allclose(found["joints"], expected, atol=1e-4)
    assert found["visible"].all()
    assert JhmdbJoints(tmp_path, "train").clips == [("wave", "clip_1")]


def test_joints_follow_the_crop(tmp_path, positions):
    found = JhmdbJoints(tmp_path, size=16).load(0)
    x, y = np.moveaxis(np.transpose(positions["clip_0"], (2, 1, 0)) - 0.5, -1, 0)
    expected = np.stack([(x - 16) / 32, y / 32], axis=-1) * 16 - 0.5  # columns 16 to 48 of 64
    np.testing.assert_allclose(found["joints"], expected, atol=1e-4)
    np.testing.assert_array_equal(found["visible"], (x >= 16) & (x < 48))


def test_joints_that_are_not_numbers_are_invisible(tmp_path, positions):
    positions["clip_0"][:, 3, 2] = np.nan
    io.savemat(matrix(tmp_path), {"pos_img": positions["clip_0"]})
    found = JhmdbJoints(tmp_path).load(0)
    assert not found["visible"][2, 3] and np.isfinite(found["joints"]).all()
    assert found["visible"].sum() == found["visible"].size - 1


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing"),
        (b"MATLAB", "truncated"),
        ({"other": 1}, "truncated"),
        ({"pos_img": np.zeros((3, 15))}, "wrong format"),
        ({"pos_img": np.ones((2, 14, 20))}, "wrong format"),
        ({"pos_img": np.ones((2, 1, 20))}, "wrong format"),
    ],
)
def test_damaged_matrices_are_bad_rows(tmp_path, positions, content, kind):
    matrix(tmp_path).unlink()
    if isinstance(content, bytes):
        matrix(tmp_path).write_bytes(content)
    elif content is not None:
        io.savemat(matrix(tmp_path), content)
    with pytest.raises(BadTruth) as caught:
        JhmdbJoints(tmp_path).load(0)
    assert caught.value.kind == kind


def test_matrices_without_frames_or_numbers_are_bad_rows(tmp_path, positions):
    for array in (np.ones((2, 15, 0)), np.array([[["x"]]], dtype=object)):
        io.savemat(matrix(tmp_path), {"pos_img": array})
        with pytest.raises(BadTruth):
            JhmdbJoints(tmp_path).load(0)


def test_matrices_that_are_large_when_decompressed_are_bad_rows(tmp_path, positions):
    data = zlib.compress(bytes(2**26 + 1))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    matrix(tmp_path).write_bytes(header + struct.pack("<II", 15, len(data)) + data)
    with pytest.raises(BadTruth, match="when decompressed"):
        JhmdbJoints(tmp_path).load(0)


def test_lists_that_cannot_be_read_are_one_sentence(tmp_path, positions):
    path = tmp_path / "splits" / "wave_test_split1.txt"
    for name in ("a\0b.avi", "../x.avi", "x" * 5000 + ".avi"):
        path.write_text(f"{name} 2\n")
        with pytest.raises(UserError, match="is not a file name") as caught:
            JhmdbJoints(tmp_path)
        assert len(str(caught.value)) < 500
    path.write_text("clip_0.avi 2\nclip_0.mp4 2\n")
    with pytest.raises(UserError, match="has 'wave/clip_0' twice"):
        JhmdbJoints(tmp_path)
    path.write_text("clip_0.avi 2\n")
    (tmp_path / "splits" / "zz_test_split1.txt").mkdir()
    with pytest.raises(UserError, match="cannot be read .Not a regular file"):
        JhmdbJoints(tmp_path)


def test_a_wrong_layout_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="extract the splits"):
        JhmdbJoints(tmp_path)
    truth_layouts.write_jhmdb(tmp_path / "some")
    (tmp_path / "some" / "joint_positions").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="joint_positions does not exist"):
        JhmdbJoints(tmp_path / "some")
    with pytest.raises(UserError, match="'test'"):
        JhmdbJoints(tmp_path, "test")
