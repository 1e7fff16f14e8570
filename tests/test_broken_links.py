"""Links of untrusted folders whose target no file can have are like missing files.

`stat` of such a link raises an error that the methods of `pathlib.Path` do not catch.
"""

import os
import types

import pytest

from invnext_jax.checkpointing import reader
from invnext_jax.data.manifest import hash_manifests
from invnext_jax.errors import UserError
from invnext_jax.evaluation.pages import clip_strips, comparison, report
from invnext_jax.evaluation.text import tokenizers
from invnext_jax.evaluation.truth import depth_folders
from invnext_jax.monitoring import metrics_file
from invnext_jax.sweeps.sweep_folder import SweepFolder
from invnext_jax.watching import watch
from invnext_jax.weights import files


def link(path):
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("a" * 300)
    with pytest.raises(OSError, match="File name too long"):
        os.stat(path)


CALLS = {
    "results.json": lambda folder: report.write_report([folder], folder / "page.html", 0),
    "checkpoints": lambda folder: report.write_report([folder], folder / "page.html", 0),
    "./results.json": lambda folder: comparison.write_comparison(
        [folder, folder / "other"], folder / "page.html"
    ),
    "./checkpoints": lambda folder: reader.restore_run(folder),
    "model.safetensors": files.open_checkpoint,
    "model.safetensors.index.json": files.open_checkpoint,
    "weights": lambda folder: files.open_checkpoint(folder / "weights"),
    "tokenizer.json": lambda folder: tokenizers._check_file(folder / "tokenizer.json"),
    "train.txt": lambda folder: depth_folders._list_drives(folder, "train"),
    "train/drive": lambda folder: depth_folders._list_drives(folder, "train"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_command_ends_with_one_sentence(name, tmp_path):
    link(tmp_path / name)
    with pytest.raises(UserError):
        CALLS[name](tmp_path)


def test_the_reason_why_a_named_file_cannot_be_read_is_given(tmp_path):
    link(tmp_path / "weights")
    with pytest.raises(UserError, match=r"weights cannot be read \(File name too long\): check"):
        files.open_checkpoint(tmp_path / "weights")
    with pytest.raises(UserError, match="none does not exist: check the path"):
        files.open_checkpoint(tmp_path / "none")


def test_links_that_form_a_loop_are_not_followed(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop has no results.json"):
        comparison.read_evaluations([tmp_path / "loop", tmp_path])
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,source\nloop,a\n")
    digest = hash_manifests(str(manifest))
    record = {"config": {"data": {"manifest": str(manifest)}}, "manifest_sha256": digest}
    run = types.SimpleNamespace(folder=tmp_path, record=record)
    assert clip_strips.open_manifest_of_run(run).paths == [str(tmp_path / "loop")]


def test_a_page_a_sweep_and_metrics_are_read_without_the_file(tmp_path):
    for name in ("results.json", "config.json", "sweep.json", "metrics.jsonl"):
        link(tmp_path / name)
    watch.open_server(tmp_path, 0, 0).server_close()
    assert not SweepFolder(tmp_path).exists()
    assert not metrics_file.read_metrics(tmp_path)
    assert reader.finished_steps(tmp_path / "config.json") == []
