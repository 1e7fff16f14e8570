"""Fixtures shared by the tests of the input pipeline."""

import shutil

import pytest

from configs import common


@pytest.fixture
def world_config(world_folder):
    """Config of the world on disk, decoded in threads."""
    config = common.data()
    config.update(manifest=str(world_folder / "train.csv"), frames=4, size=32, short_side=32)
    config.update(workers=0, prefetch=4)
    return config


@pytest.fixture
def with_bad_videos(world_config, world_folder, tmp_path):
    """The world with rows 2 and 7 broken."""
    folder = tmp_path / "bad"
    shutil.copytree(world_folder, folder)
    (folder / "train" / "000002.mp4").write_bytes(b"no video")
    (folder / "train" / "000007.mp4").unlink()
    world_config.manifest = str(folder / "train.csv")
    return world_config
