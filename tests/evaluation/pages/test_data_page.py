"""The page shows the clips and masks of the first training steps, and counts dropped files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError
from invnext_jax.evaluation.pages import data_page
from invnext_jax.models.patches import clip_grid, normalize
from invnext_jax.stages.pixel_sampling import visible_grid
from invnext_jax.stages.registry import STAGES
from invnext_jax.training.step import select_microbatch

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(world, tmp_path):
    """Sixteen clips of the world, two of which cannot be read."""
    shutil.copytree(world.parent, tmp_path / "world")
    (tmp_path / "world" / "train" / "000002.mp4").write_bytes(b"no video")
    (tmp_path / "world" / "train" / "000005.mp4").unlink()
    return tmp_path / "world"


def get_config(stage, folder, **mask):
    config = {"stage1": stage1_config, "stage2": stage2_config}[stage].get_config("tiny")
    config.batch_size = 8
    config.data.update(manifest=str(folder / "train.csv"), frames=2, workers=0)
    config.mask.update(mask)
    return config


def run_batches(config, count):
    """Returns the first batches of the training loop."""
    iterator = iter(
        pipeline.make_train_dataset(config.data, seed=config.seed, batch_size=config.batch_size)
    )
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def step_masks(config, frozen, batch, step):
    """Returns the masks of a training step for a complete batch, [b t y x] each.

    With gradient accumulation, the masks of each microbatch are drawn with its key.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    stage = {"stage1": stage1, "stage2": stage2}[config.stage]

    @jax.jit
    def draw(frozen, video_bthwc, key):
        samples = stage.apply_teacher(config, frozen, normalize(video_bthwc), key)[1]
        return [sample.keep_bk for sample in samples]

    grid, found = clip_grid(batch["video"], config.encoder.patch), {}
    for index in range(config.accumulate):
        part, part_key = select_microbatch(
            {"video": batch["video"], "row": np.arange(config.batch_size)},
            key,
            index,
            config.accumulate,
        )
        masks = [np.asarray(keep_bk) for keep_bk in draw(frozen, part["video"], part_key)]
        parts = zip(*(visible_grid(keep_bk, grid) for keep_bk in masks), strict=True)
        found |= dict(zip(np.asarray(part["row"]).tolist(), parts, strict=True))
    return list(map(np.stack, zip(*(found[row] for row in sorted(found)), strict=True)))


@pytest.mark.parametrize(
    ("stage", "kind", "accumulate"),
    [
        *(("stage1", "semantic", 1), ("stage1", "tube", 4), ("stage1", "random", 1)),
        *(("stage2", "multi_block", 4), ("stage2", "semantic", 1)),
    ],
)
def test_clips_and_masks_are_those_of_the_first_steps(stage, kind, accumulate, folder):
    config = get_config(stage, folder, kind=kind)
    config.accumulate = accumulate
    frozen = stage1.init_frozen(stage1_config.get_config("tiny"), None)
    shown = list(data_page.sample_clips(config, 12, pipeline.BadVideoTracker()))
    assert [clip.step for clip in shown] == [0] * 8 + [1] * 4
    for step, batch in enumerate(run_batches(config, 2)):
        expected = step_masks(config, frozen, batch, step)
        for i, clip in enumerate(shown[8 * step : 8 * step + 8]):
            np.testing.assert_array_equal(clip.video_thwc, batch["video"][i])
            assert clip.row == batch["index"][i]
            assert len(clip.visible) == len(expected)
            for visible_tyx, visible_btyx in zip(clip.visible, expected, strict=True):
                np.testing.assert_array_equal(visible_tyx, visible_btyx[i])


@pytest.mark.parametrize(("stage", "strips_a_clip"), [("stage1", 2), ("stage2", 3)])
def test_page_contains_strips_sources_and_counts(stage, strips_a_clip, folder):
    (folder / "train.quarantine.csv").write_text(
        "path,reason\n/v/a.mp4,truncated: 5 of 60 frames\n/v/b.mp4,truncated: 17 of 20 frames\n"
        "/v/c.mp4,empty file\n"
    )
    page = data_page.write_page(get_config(stage, folder), folder / "out" / "page.html", 16)
    text = page.read_text()
    assert text.count('class="clip"') == 16
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 16 * strips_a_clip
    assert not re.search(r"<script|<link|@import|src=\"http|url\(\s*['\"]?http", text)
    assert "2 files could not be read before" in text
    assert "<td>1</td><td>No such file" in text
    assert "3 files were excluded when the manifest was made" in text
    assert "<td>2</td><td>truncated: N of N frames</td>" in text
    assert str(folder / "train" / "000003.mp4") in text and "source world" in text
    kind = "semantic, 75% hidden" if stage == "stage1" else "8 blocks of 15%, 38% visible"
    assert kind in text


def test_shares_of_sources_and_clips_of_one_video_are_shown(folder):
    text = (folder / "train.csv").read_text().splitlines()
    rows = [
        line.replace(",world,", ",mine,") if i % 4 == 1 else line for i, line in enumerate(text)
    ]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    config = get_config("stage1", folder, kind="tube")
    config.data.update(weights=(("world", 1.0), ("mine", 3.0)), repeats=2)
    shown = list(data_page.sample_clips(config, 11, pipeline.BadVideoTracker()))
    (first, second) = run_batches(config, 2)
    for i, clip in enumerate(shown):
        batch = first if i < 8 else second
        assert clip.row == batch["index"][i % 8] == shown[i - i % 2].row
        np.testing.assert_array_equal(clip.video_thwc, batch["video"][i % 8])
    text = data_page.write_page(config, folder / "page.html", 3).read_text()
    assert "mine 4 (75.0% of the clips), world 12 (25.0% of the clips)" in text
    assert "2 of a video" in text and "world: flip False" in text
    config.data.repeats = 3
    with pytest.raises(UserError, match="must be divisible by config.data.repeats=3"):
        data_page.write_page(config, folder / "page.html", 3)


def test_the_page_names_the_clips_and_masks_that_are_drawn(folder):
    config = get_config("stage1", folder, kind="tube", ratio=0.8)  # 12 of 16 patches
    config.data.update(crop="random_resized", sampling="dense", stride=(1, 2))
    text = data_page.write_page(config, folder / "page.html", 1).read_text()
    assert "dense sampling with stride 1 to 2, crops of 0.3 to 1 of the area" in text
    assert "tube, 75% hidden" in text and "80%" not in text


def test_page_without_dropped_files_shows_zero(world):
    config = get_config("stage1", world.parent, kind="tube")
    text = data_page.write_page(config, world.parent / "page.html", 2).read_text()
    assert "0 files were dropped" in text and "excluded" not in text


def test_reasons_are_counted_by_kind():
    reasons = {
        "/v/1.mp4": "/v/1.mp4: truncated: 3 of 9 frames",
        "/v/2.mp4": "/v/2.mp4: truncated: 30 of 90 frames",
        "/v/3.mp4": "/v/3.mp4: InvalidDataError: [Errno 1094995529] Invalid data: '/v/3.mp4'",
    }
    assert data_page.count_reasons(reasons) == [
        ("truncated: N of N frames", 2),
        ("InvalidDataError: Invalid data: '...'", 1),
    ]


def test_reasons_that_name_another_file_are_counted_together():
    reasons = {f"/{i}.mp4": f"same content as an earlier video: /v/{i}:{i}.mp4" for i in range(3)}
    assert data_page.count_reasons(reasons) == [("same content as an earlier video", 3)]


def test_a_page_lists_few_and_short_reasons():
    letters = "abcdefghijklmnopqrstuvwxyz"
    kinds = [f"{a}{b}" for a in letters for b in letters]
    reasons = {"twice": "aa", "long": "long" * 1000, **{f"{kind}.mp4": kind for kind in kinds}}
    found = data_page.count_reasons(reasons)
    assert found[0] == ("aa", 2) and found[-1] == ("577 other reasons", 577)
    assert len(found) == 101 and sum(count for _, count in found) == len(reasons)
    assert max(len(reason) for reason, _ in found) <= 1000


def test_wrong_configs_are_refused(folder):
    config = get_config("stage1", folder)
    with pytest.raises(UserError, match="clips=0 must be at least 1"):
        data_page.write_page(config, folder / "page.html", 0)
    config.teacher.weights = ""
    with pytest.raises(UserError, match="teacher.weights is empty"):
        data_page.write_page(config, folder / "page.html")
    config.mask.kind = "tubes"
    with pytest.raises(UserError, match="mask.kind='tubes' must be one of"):
        data_page.write_page(config, folder / "page.html")
    config.stage = "probe"
    with pytest.raises(UserError, match="config.stage='probe' must be one of"):
        data_page.write_page(config, folder / "page.html")


def test_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere.train.csv does not exist"):
        data_page.write_page(
            get_config("stage1", Path("nowhere"), kind="tube"), tmp_path / "a.html"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_manifest_is_one_sentence_on_the_command_line(tmp_path):
    command = [sys.executable, ROOT / "launch" / "show_data.py"]
    command += [f"--config={ROOT}/configs/stage1.py:tiny", f"--out={tmp_path}/page.html"]
    done = subprocess.run(
        [*command, "--config.data.manifest=nowhere.csv"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": False},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "nowhere.csv" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "page.html").exists()


def test_quarantine_lists_of_all_folders_are_read(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("path,source\n")
        quarantine = tmp_path / name / "train.quarantine.csv"
        quarantine.write_text(f"path,reason\n/{name}.mp4,empty file\n")
    found = data_page._read_quarantines(f"{tmp_path}/one,{tmp_path}/two")
    assert found == [("empty file", 2)]


def test_large_quarantine_lists_are_skipped(tmp_path, monkeypatch, caplog):
    (tmp_path / "one.csv").write_text("path,source\na.mp4,s\n")
    quarantine = tmp_path / "one.quarantine.csv"
    quarantine.write_text("path,reason\na.mp4,empty file\n")
    monkeypatch.setattr(data_page, "MAX_QUARANTINE_BYTES", 10)
    assert data_page._read_quarantines(f"{tmp_path}/one.csv") == []
    assert "Larger than 10 bytes" in caplog.text
    monkeypatch.undo()
    quarantine.write_text("path,reason" + ",x" * 1000 + "\na.mp4,empty file\n")
    assert data_page._read_quarantines(f"{tmp_path}/one.csv") == []
    assert "more than 1,000: remove those" in caplog.text


@pytest.mark.parametrize(
    "damaged",
    [
        *('path\n"', "name\na.mp4\n", "path,reason\na.mp4\n", "path,reason\na,b.mp4,empty\n"),
        "path,reason,path\na.mp4,empty,b.mp4\n",
    ],
)
def test_damaged_quarantine_lists_are_skipped(damaged, tmp_path, caplog):
    (tmp_path / "one.csv").write_text("path,source\na.mp4,s\n")
    (tmp_path / "one.quarantine.csv").write_text(damaged)
    assert data_page._read_quarantines(f"{tmp_path}/one.csv") == []
    assert "is damaged and skipped" in caplog.text
