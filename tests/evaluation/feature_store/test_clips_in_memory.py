"""Clips in memory give the batches of the videos."""

import numpy as np
import pytest
import toy_evaluation
from oracle_encoder import make_blind

from configs.eval.tasks import attentive_probe
from invnext_jax.data import pipeline
from invnext_jax.evaluation import evaluation_data


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = toy_evaluation.write_data(tmp_path_factory.mktemp("clips"), train=13, val=3)
    (folder / "train" / "000004.mp4").write_bytes(b"bad")
    config = toy_evaluation.shrink(attentive_probe.get_config("tiny"), "", folder)
    encoder = make_blind(size=toy_evaluation.SIZE, frames=toy_evaluation.FRAMES)
    return evaluation_data.resolve(config, encoder)


@pytest.mark.parametrize("rows", [None, [0, 2, 3, 4, 5, 11], []])
@pytest.mark.parametrize("block", [None, 5])
def test_batches_are_those_of_the_files(config, rows, block):
    data = evaluation_data.EvaluationData(config, ())
    found = data.batches("train", rows=rows, block=block)
    expected = pipeline.make_eval_dataset(
        config.data, manifest=config.train_manifest, batch_size=16, rows=rows, block=block
    )
    assert len(found) == len(expected)
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


def test_videos_are_read_once_unless_they_are_large(config, monkeypatch):
    data, reads = evaluation_data.EvaluationData(config, ()), []
    make = pipeline.make_eval_dataset

    def count(*arguments, **options):
        reads.append(options["manifest"])
        return make(*arguments, **options)

    monkeypatch.setattr(pipeline, "make_eval_dataset", count)
    batches = data.batches("train")
    assert batches.bad_videos.dropped == 1
    data.batches("train", rows=[1])
    data.videos("train")
    assert reads == [config.train_manifest]
    monkeypatch.setattr(evaluation_data, "IN_MEMORY_BYTES", 100)
    data.batches("train")
    assert len(reads) == 2
