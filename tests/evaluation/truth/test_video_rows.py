"""Videos are found by their paths and by the ends of their paths."""

from invnext_jax.data import manifest
from invnext_jax.evaluation.truth.video_rows import VideoRows


def read_rows(tmp_path, paths):
    (tmp_path / "list.csv").write_text("path,source\n" + "".join(f"{p},a\n" for p in paths))
    return VideoRows(manifest.read_manifest(str(tmp_path / "list.csv")))


def test_names_of_deep_paths_are_found(tmp_path):
    first, second = "a/b/c/d/e/f/g/h/i/j/x", "a/b/c/d/e/f/g/h/i/j/y"
    rows = read_rows(tmp_path, [f"{first}/a.mp4", f"{second}/a.mp4"])
    assert rows.find(f"{first}/a.mp4") == 0 and rows.find(f"/data/{second}/a") == 1
    assert rows.find("x/a.mp4") == 0 and rows.find("a.mp4") is None
    # Only whole paths have more than 8 parts: relative and absolute, with and without extension.
    assert sum(len(name.split("/")) > 8 for name in rows._rows) == 8
