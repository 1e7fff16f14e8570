"""Writes workdirs of evaluations with given scores, without an encoder."""

import json

import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.evaluation import nearest_neighbors, results_file, video_scores

ROW = {"evaluator": "linear_probe", "name": "encoder", "input": "mean", "task": "shape"}


def write_evaluation(folder, manifest, scores, metric="top1", predicted=None, **changes):
    """Writes the results of an encoder with the given scores of the videos for the task "shape"."""
    (folder / "rows").mkdir(parents=True)
    row = {
        **ROW,
        **{"metric": metric, "value": float(np.mean(scores)), "standard_error": 0.01},
        **{"n": len(scores), "scores": {"file": "rows/x.npz", "row": 0}},
    }
    random = {**row, "name": "random", "value": 0.125}
    del random["scores"]
    stored = video_scores.VideoScores(
        np.arange(len(scores)), np.asarray(scores, float), predicted_b=predicted
    )
    video_scores.write(folder / "rows" / "x.npz", [stored])
    results = {
        **{"format": results_file.FORMAT, "stage": "", "title": "V-JEPA 2", "rows": [row, random]},
        **{"checkpoint": "runs/a", "step": None, "tokens": {}, "notes": [], "tasks": ["shape"]},
        "manifests": {"val": manifest_lib.hash_manifests(manifest)},
        "run": {"config": {"val_manifest": manifest}},
        **changes,
    }
    results_file.write(folder / results_file.RESULTS, results)
    return folder


def add_config(folder, config, neighbors=None):
    """Adds a config with its manifests and, optionally, neighbors to the results."""
    results = json.loads((folder / results_file.RESULTS).read_text())
    results["run"]["config"] = config.to_dict()
    results["manifests"] = {
        split: manifest_lib.hash_manifests(config[f"{split}_manifest"])
        for split in ("train", "val")
    }
    if neighbors is not None:
        nearest_neighbors.write_nearest_videos(folder / "rows" / "n.npz", neighbors)
        results["neighbors"] = "rows/n.npz"
    results_file.write(folder / results_file.RESULTS, results)
    return folder
