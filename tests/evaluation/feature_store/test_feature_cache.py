"""The feature cache: equal features for any batch size, devices, chunks and interruptions."""

import contextlib
import dataclasses
from shutil import copytree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from oracle_encoder import make_oracle

from configs import common
from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.evaluation.feature_store import extraction, feature_cache
from invnext_jax.evaluation.features import FeatureOptions
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.heads import AttentionPool
from invnext_jax.objectives import losses
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec

ROWS = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_world(WorldSpec(size=16, frames=4, split="val"), folder, ROWS, progress=False)
    return folder


def make_source(folder, batch_size=4, options=FeatureOptions(), load=None, **data):  # noqa: B008
    config = common.data()
    config.update(frames=4, size=16, short_side=16, workers=0, prefetch=2, **data)
    arguments = {"manifest": str(folder / "val.csv"), "batch_size": batch_size, "load": load}

    def make_batches(rows, block):
        return pipeline.make_eval_dataset(
            config, **arguments, views=options.views, rows=rows, block=block
        )

    return feature_cache.FeatureSource(ROWS, (4, 16, 16, 3), batch_size, make_batches)


@pytest.fixture(scope="module")
def encoder():
    config = probe_config.get_config("tiny")
    sizes = {
        **{"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "patch": 8, "size": 16},
        **{"frames": 4, "class_tokens": 2, "layer_scale": 1.0, "drop_path": 0.0},
        **{"pool_width": 6, "pool_heads": 2},
    }
    with config.unlocked():
        config.update(encoder=sizes, dtype="float32", remat="none", init_gain=1.0, stage="")
    pool = AttentionPool(6, 2, jnp.float32).init(jax.random.key(1), jnp.zeros((1, 3, 16)))
    module, params = encoder_model.from_config(config), pretrained.init_encoder(config, 0)
    return pretrained.freeze(pretrained.LoadedEncoder(module, params, config, pool["params"]))


def get(folder, workdir, encoder, options=FeatureOptions(), **arguments):  # noqa: B008
    cache = feature_cache.FeatureCache(workdir, arguments.pop("max_gb", 1.0))
    source = make_source(folder, options=options, **arguments)
    return cache.get("encoder-val", "key", encoder, source, options)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 4)


def all_clips(folder):
    (batch,) = make_source(folder, ROWS).make_batches(None, None)
    return batch


def test_features_are_those_of_the_encoder(folder, encoder, tmp_path, small_chunks):
    options = FeatureOptions(moments=True)
    found, batch = get(folder, tmp_path, encoder, options), all_clips(folder)
    expected = jax.device_get(jax.jit(encoder.apply)(encoder.params, batch["video"]))
    frames = np.mean(expected.tokens_btnd, axis=2)
    assert_near(found.arrays["frames"].read()[:, 0], frames, 1e-5)
    assert_near(found.pooled("mean"), frames.mean(axis=1), 1e-5)
    assert_near(found.pooled("frames"), frames.reshape(ROWS, -1), 1e-5)
    assert_near(found.pooled("pool"), expected.pooled_bd, 1e-5)
    assert_near(found.pooled("class"), np.reshape(expected.class_bkd, (ROWS, -1)), 1e-5)
    assert_near(found.pooled("frames", np.array([7, 2])), frames.reshape(ROWS, -1)[[7, 2]], 1e-5)
    assert [found.width(p) for p in ("mean", "frames", "pool", "class")] == [16, 64, 6, 32]
    np.testing.assert_array_equal(found.index_b, np.arange(ROWS))
    for task, labels in found.labels.items():
        np.testing.assert_array_equal(labels, batch[f"label_{task}"])
    share = losses.position_share(jnp.reshape(expected.tokens_btnd, (ROWS, -1, 16)))
    assert found.tokens.position_share == pytest.approx(float(share), rel=1e-3)
    assert len(list((tmp_path / "encoder-val").glob("*.npz"))) == 3


def test_dense_tokens_and_layers_are_stored(folder, encoder, tmp_path):
    batch = all_clips(folder)
    expected = jax.jit(encoder.apply, static_argnums=2)(encoder.params, batch["video"], (0,))
    options = FeatureOptions(layer=0, dense=True, dtype="float16")
    found = get(folder, tmp_path, encoder, options)
    tokens_mean = np.mean(expected.layers_lbtnd[0], axis=2)
    assert set(found.arrays) == {"tokens", "frames", "pool", "class"}
    assert_near(found.pooled("frames"), tokens_mean.reshape(ROWS, -1), 2e-3)
    tokens = found.arrays["tokens"]
    assert (tokens.shape, tokens.dtype) == ((ROWS, 1, 4, 4, 16), np.float16)
    assert_near(tokens.read()[:, 0], expected.layers_lbtnd[0], 2e-3)


def test_three_views_of_square_videos_are_equal(folder, encoder, tmp_path):
    found = get(folder, tmp_path / "3", encoder, FeatureOptions(views=3))
    single = get(folder, tmp_path / "1", encoder).pooled("frames")
    views = found.pooled_views("frames")
    assert views.shape == (ROWS, 3, 64)
    assert_near(views, np.repeat(single[:, None], 3, axis=1), 1e-5)
    assert_near(found.pooled("frames"), single, 1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_features_do_not_depend_on_the_batch_size(
    batch_size, folder, encoder, tmp_path, small_chunks
):
    options = FeatureOptions(moments=True)
    one = get(folder, tmp_path / "a", encoder, options)
    other = get(folder, tmp_path / "b", encoder, options, batch_size=batch_size)
    assert_near(other.pooled("frames"), one.pooled("frames"), 1e-5)
    np.testing.assert_allclose(other.second_dd, one.second_dd, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(other.index_b, one.index_b)


def test_features_do_not_depend_on_the_number_of_devices(folder, encoder, tmp_path, monkeypatch):
    options = FeatureOptions(moments=True)
    eight = get(folder, tmp_path / "8", encoder, options)
    assert extraction.local_mesh().size == 8
    monkeypatch.setattr(extraction.jax, "local_devices", lambda: jax.devices()[:1])
    one = get(folder, tmp_path / "1", encoder, options)
    assert_near(eight.pooled("frames"), one.pooled("frames"), 1e-5)
    np.testing.assert_allclose(eight.second_dd, one.second_dd, rtol=1e-5, atol=1e-5)


def test_extraction_compiles_once(folder, encoder, tmp_path, small_chunks):
    traces = []

    def forward(*arguments):
        traces.append(arguments)
        return encoder.forward(*arguments)

    get(folder, tmp_path, dataclasses.replace(encoder, forward=forward))
    sizes = [jnp.shape(video)[0] for _, video, _ in traces]
    assert sizes.count(8) == 1  # the others are shapes of one clip


def interrupt_after(batches, monkeypatch):
    """Raises KeyboardInterrupt in the extraction after some batches."""
    run = extraction.run_extractor

    def interrupted(*arguments):
        for number, result in enumerate(run(*arguments)):
            if number == batches:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(extraction, "run_extractor", interrupted)


def test_killed_extraction_continues_after_the_last_chunk(
    folder, encoder, tmp_path, small_chunks, monkeypatch
):
    options = FeatureOptions(moments=True)
    expected = get(folder, tmp_path / "whole", encoder, options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(2, patch)
        get(folder, tmp_path / "killed", encoder, options)
    assert len(list((tmp_path / "killed/encoder-val").glob("*.npz"))) == 1
    requested = []
    source = make_source(folder)
    make_batches = source.make_batches
    source = source._replace(make_batches=lambda *a: requested.append(a[0]) or make_batches(*a))
    cache = feature_cache.FeatureCache(tmp_path / "killed", 1.0)
    found = cache.get("encoder-val", "key", encoder, source, options)
    assert requested == [list(range(4, ROWS))]
    np.testing.assert_array_equal(found.pooled("frames"), expected.pooled("frames"))
    np.testing.assert_array_equal(found.second_dd, expected.second_dd)
    cache.get("encoder-val", "key", encoder, source, options)
    assert len(requested) == 1


def test_damaged_chunks_are_extracted_again(folder, encoder, tmp_path, small_chunks, capsys):
    expected = get(folder, tmp_path, encoder).pooled("frames")
    for name in ("000000.npz", "000001-frames.npy"):
        path = tmp_path / "encoder-val" / name
        path.write_bytes(path.read_bytes()[:-10])
    np.testing.assert_array_equal(get(folder, tmp_path, encoder).pooled("frames"), expected)
    assert capsys.readouterr().out.count("extracted again") == 2


def test_another_key_replaces_the_features(folder, encoder, tmp_path, small_chunks):
    get(folder, tmp_path, encoder)
    (tmp_path / "encoder-val" / "old").write_text("")
    cache = feature_cache.FeatureCache(tmp_path)
    cache.get("encoder-val", "other", encoder, make_source(folder), FeatureOptions())
    assert not (tmp_path / "encoder-val" / "old").exists()


def test_videos_that_cannot_be_read_now_are_read_by_the_next_command(
    folder, encoder, tmp_path, small_chunks, monkeypatch, capsys
):
    real = pipeline.LoadClip.__call__

    def lose(kind, rows):
        def load(self, record, seeds):
            if record.index in rows:
                return pipeline.BadClip(record.name, kind, "lost")
            return real(self, record, seeds)

        monkeypatch.setattr(pipeline.LoadClip, "__call__", load)

    lose("time limit", (5,))
    found = get(folder, tmp_path, encoder)
    np.testing.assert_array_equal(found.index_b, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10])
    assert found.pooled("mean").shape == (10, 16)
    assert "1 videos could not be read (1 x time limit)" in capsys.readouterr().out
    lose("damaged", (0, 1, 2, 3))  # these were stored before, so they are not read again
    np.testing.assert_array_equal(get(folder, tmp_path, encoder).index_b, np.arange(ROWS))
    permanent = get(folder, tmp_path / "other", encoder)
    np.testing.assert_array_equal(permanent.index_b, np.arange(4, ROWS))
    lose("", ())
    np.testing.assert_array_equal(get(folder, tmp_path / "other", encoder).index_b[:1], [4])


def test_videos_shorter_than_a_clip_are_counted(folder, encoder, tmp_path, capsys):
    get(folder, tmp_path / "sparse", encoder)
    assert "fewer frames" not in capsys.readouterr().out
    get(folder, tmp_path / "dense", encoder, sampling="dense", stride=(2, 2))  # spans 7 frames
    assert "11 of 11 videos have fewer frames than a clip can span" in capsys.readouterr().out


def test_features_above_the_limit_or_not_finite_are_one_sentence_errors(folder, encoder, tmp_path):
    with pytest.raises(UserError, match=r"of 11 videos need .* GB, more than .*max_gb=1e-09"):
        get(folder, tmp_path, encoder, max_gb=1e-9)
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), encoder.params)
    with pytest.raises(UserError, match="the features of row 0 or the next rows are not finite"):
        get(folder, tmp_path, dataclasses.replace(encoder, params=params))


def test_size_is_printed_before_the_extraction(folder, encoder, tmp_path, capsys, monkeypatch):
    with contextlib.suppress(KeyboardInterrupt):
        interrupt_after(0, monkeypatch)
        get(folder, tmp_path, encoder)
    size = ROWS * 4 * (4 * 16 + 6 + 2 * 16) / 1e6
    assert f"features of 11 videos need {size:.3g} MB" in capsys.readouterr().out


def test_oracle_features_are_the_truth(folder, tmp_path):
    batch = all_clips(folder)
    truth = np.random.default_rng(0).normal(size=(ROWS, 4, 3))
    oracle = make_oracle(batch["video"], truth)
    assert_near(get(folder, tmp_path, oracle).arrays["frames"].read()[:, 0], truth, 1e-5)


def test_copied_workdirs_stay_valid(folder, encoder, tmp_path, monkeypatch):
    expected = get(folder, tmp_path / "a", encoder).pooled("mean")
    copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(extraction, "run_extractor", None)
    np.testing.assert_array_equal(get(folder, tmp_path / "b", encoder).pooled("mean"), expected)


def test_key_depends_on_encoder_manifest_and_clips_but_not_on_workers():
    data = {"frames": 8, "size": 32, "sampling": "sparse", "workers": 1, "manifest": "a.csv"}
    key = feature_cache.feature_key("encoder", "digest", "videos", data)
    for name, value in (("workers", 4), ("manifest", "b.csv"), ("root", "/data")):
        same = {**data, name: value}
        assert key == feature_cache.feature_key("encoder", "digest", "videos", same)
    others = [
        feature_cache.feature_key("other", "digest", "videos", data),
        feature_cache.feature_key("encoder", "other", "videos", data),
        feature_cache.feature_key("encoder", "digest", "other", data),
        *(
            feature_cache.feature_key("encoder", "digest", "videos", {**data, name: value})
            for name, value in (
                *(("frames", 4), ("size", 64), ("sampling", "dense")),
                ("clip_seconds", 1.0),  # decides which videos are dropped
            )
        ),
    ]
    assert len({key, *others}) == 8
