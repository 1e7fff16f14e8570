"""Streaming linear probe: reaches the exact solver's accuracy, and is the same when resumed."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import linear_probe, streaming_probe
from invnext_jax.evaluation.feature_store.chunked_array import ChunkedArray, write_array
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.evaluation.features import VideoFeatures

TRAIN, VAL, T, D, K = 500, 400, 2, 12, 5


def make_features(folder, rng, videos, centers_kd, views=1):
    """Makes features of overlapping classes in two chunks; every tenth video has no label."""
    label_b = rng.integers(K, size=videos).astype(np.int32)
    x_bvtd = 3 + rng.normal(size=(videos, views, T, D)) + 0.9 * centers_kd[label_b][:, None, None]
    x_bvtd = x_bvtd * np.geomspace(1, 30, D)  # badly scaled on purpose
    half = videos // 2
    for number, part in enumerate((x_bvtd[:half], x_bvtd[half:])):
        write_array(folder / f"{number}.npy", part.astype(np.float32))
    shape_b = np.where(np.arange(videos) % 10 == 0, -1, label_b * 3)  # class ids with gaps
    labels = {"shape": shape_b.astype(np.int32), "parity": (label_b % 2).astype(np.int32)}
    array = ChunkedArray([folder / "0.npy", folder / "1.npy"])
    return VideoFeatures({"frames": array}, labels, np.arange(videos), None, None)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    rng, folders = np.random.default_rng(0), []
    centers_kd = rng.normal(size=(K, D))
    for name, videos in (("train", TRAIN), ("val", VAL)):
        folders.append(make_features(tmp_path_factory.mktemp(name), rng, videos, centers_kd))
    return folders


def get_config(**changes):
    config = probe_config.get_config("tiny")
    config.streaming.update(
        epochs=30, batch_size=100, learning_rates=(1e-3, 1e-2, 1e-1), weight_decays=(0.0, 0.3)
    )
    config.streaming.update(changes)
    return config


def fit(parts, pooling="frames", config=None, **options):
    config = config or get_config()
    return streaming_probe.fit_streaming_tasks(
        *parts, pooling, ["shape", "parity"], config, **options
    )


@pytest.mark.parametrize("pooling", ["mean", "frames"])
def test_accuracy_is_that_of_scikit_learn_and_of_the_exact_solver(pooling, parts):
    found = fit(parts, pooling)
    for task, result in found.items():
        has = [part.labels[task] >= 0 for part in parts]
        x, z = (
            linear_probe.normalize_rows(part.pooled(pooling))[labeled]
            for part, labeled in zip(parts, has, strict=True)
        )
        y, expected = (p.labels[task][b] for p, b in zip(parts, has, strict=True))
        scaler = StandardScaler().fit(x)
        reference = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(x), y)
        accuracy = reference.score(scaler.transform(z), expected)
        exact = linear_probe.fit_linear(
            *linear_probe_arguments(x, y, z, expected), inverse_penalties=(1e-2, 1e-1, 1.0)
        )
        assert accuracy > 1.5 / K
        assert result.top1 == pytest.approx(accuracy, abs=result.standard_error)
        assert result.top1 == pytest.approx(exact.top1, abs=result.standard_error)
        assert (result.videos, result.classes) == (has[1].sum(), len(np.unique(y)))


def linear_probe_arguments(x, y, z, expected):
    x, z = linear_probe.standardize(x, z)
    return x, y, z, expected


def test_killed_fit_continues_and_gives_the_same_result(parts, tmp_path, monkeypatch):
    config, folder = get_config(epochs=3), tmp_path

    def state_file(name, *rest):
        return StateFile(folder / f"{name}.npz", repr(rest))

    expected = fit(parts, config=config)
    real, calls = VideoFeatures.pooled, []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == 24:  # after the statistics and the selection, in the final fit
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VideoFeatures, "pooled", killed)
        fit(parts, config=config, state_file=state_file)
    assert (tmp_path / "linear-frames-selection.npz").is_file()
    found = fit(parts, config=config, state_file=state_file)
    assert [r.top1 for r in found.values()] == [r.top1 for r in expected.values()]


@pytest.mark.parametrize("held_out", [0.1, 0.15])
def test_state_depends_on_the_videos_that_select_the_settings(held_out, parts):
    config = get_config()  # batches of 100: the number of steps is the same
    config.held_out = held_out

    def state_file(name, *rest):
        raise KeyError(name, rest)

    with pytest.raises(KeyError) as caught:
        fit(parts, config=config, state_file=state_file)
    name, rest = caught.value.args
    assert name.endswith("selection") and rest[-1] == TRAIN - round(held_out * TRAIN)
    assert "steps=150," in rest[2]


def test_probabilities_of_views_are_averaged(parts, tmp_path):
    rng = np.random.default_rng(1)
    centers_kd = rng.normal(size=(K, D))
    one, three = (tmp_path / name for name in ("one", "three"))
    for folder in (one, three):
        folder.mkdir()
    train = make_features(one, rng, 200, centers_kd)
    val = make_features(three, rng, 200, centers_kd, views=3)
    several = fit((train, val))["parity"].top1
    single = VideoFeatures(
        {"frames": SingleView(val.arrays["frames"])}, val.labels, val.index_b, None, None
    )
    assert several > fit((train, single))["parity"].top1  # three samples of noise are averaged


class SingleView:
    """Features of only the first view (crop) of each video."""

    def __init__(self, array):
        self.array, self.shape = array, (array.shape[0], 1, *array.shape[2:])

    def take(self, rows):
        return self.array.take(rows)[:, :1]


def test_size_decides_about_the_solver(parts):
    config = get_config(above_gb=4 * TRAIN * T * D / 1e9)
    assert not streaming_probe.is_needed(parts[0], "frames", config)
    config.streaming.above_gb *= 0.99
    assert streaming_probe.is_needed(parts[0], "frames", config)
    assert not streaming_probe.is_needed(parts[0], "mean", config)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 0}, "config.streaming.epochs=0 must be at least 1"),
        ({"batch_size": 0}, "config.streaming.batch_size=0"),
        ({"learning_rates": ()}, "config.streaming: learning_rates="),
        ({"weight_decays": (-1.0,)}, "config.streaming: weight_decays="),
    ],
)
def test_invalid_options_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        linear_probe.LinearProbe().check_config(get_config(**changes))
