"""Label propagation on the synthetic world and on folders in the layouts of DAVIS and JHMDB."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from oracle_encoder import make_blind, make_inputs, make_truth_oracle, resolve
from truth_layouts import SPEC, write_davis, write_jhmdb

from configs.eval.tasks import label_propagation as propagation_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate as evaluate_lib
from invnext_jax.evaluation import tables
from invnext_jax.evaluation.dense import first_frame, video_propagation
from invnext_jax.evaluation.evaluators import label_propagation
from invnext_jax.evaluation.evaluators.label_propagation import LabelPropagation
from invnext_jax.evaluation.feature_store import state_file
from invnext_jax.evaluation.frozen_encoder import FrozenOutput
from invnext_jax.evaluation.metrics import segmentation
from invnext_jax.evaluation.truth.joints import JhmdbJoints
from invnext_jax.evaluation.truth.masks import DavisMasks

# Labels are copied from other tokens, so that only tokens of single pixels can be perfect.
PATCH, SIZE, FRAMES, GRID = 1, 24, 8, (24, 24)
WORLD = f"simple?videos=6&size={SIZE}&frames={FRAMES}&clutter=1"


def get_config(encoder, **changes):
    config = propagation_config.get_config("tiny")
    config.label_propagation.update(height=0, width=0)
    return resolve(config, encoder, WORLD, **changes)


def evaluate(encoder, folder, config=None, name="encoder"):
    config = config or get_config(encoder)
    rows = LabelPropagation().evaluate(make_inputs(config, encoder, folder, name), config)
    return {(row.name, row.metric): row for row in rows}


@pytest.fixture(scope="module")
def blind():
    return make_blind(patch=PATCH, size=SIZE, frames=FRAMES)


def code_masks(truth):
    """Makes tokens that are equal if they belong to the same object."""
    return np.eye(3)[truth["ids"]].reshape(-1, FRAMES, SIZE**2, 3)


def code_points(truth):
    """Makes tokens that are similar if they are near the same points."""
    points_mtn2 = truth["points"].swapaxes(1, 2)
    return np.array([[first_frame.label_points(x, GRID) for x in clip] for clip in points_mtn2])


@pytest.fixture(scope="module")
def rows(blind, tmp_path_factory):
    found = {}
    config = get_config(blind)
    for make_tokens, metrics in (
        (code_masks, ("j_and_f",)),
        (code_points, ("pck_0.1", "pck_0.2")),
    ):
        settings = config.label_propagation
        oracle = make_truth_oracle(settings, config, make_tokens, PATCH, ("val",))
        rows = evaluate(oracle, tmp_path_factory.mktemp("oracle"))
        found |= {key: row for key, row in rows.items() if key[1] in metrics}
    return found


@pytest.mark.parametrize("metric", ["j_and_f", "pck_0.1", "pck_0.2"])
def test_an_oracle_reaches_the_resolution_of_its_tokens(rows, metric):
    best, found, static = (rows[name, metric] for name in ("token_truth", "encoder", "static"))
    assert found.value >= 0.95 * best.value
    assert found.value > static.value + 3 * static.standard_error
    assert found.n == 6 and found.standard_error >= 0


def test_a_blind_encoder_is_not_better_than_labels_that_stay(blind, tmp_path):
    found = evaluate(blind, tmp_path)
    for metric in ("j_and_f", "pck_0.2"):
        assert found["encoder", metric].value <= found["static", metric].value
    assert found["encoder", "region_j"].value < 0.05


def make_pixel_encoder(patch=8, size=32, frames=4, tubelet=1):
    """Makes an encoder whose tokens are the pixels of the patches."""

    def forward(params, video_bthwc, layers):
        del params
        x_bthwc = video_bthwc[:, ::tubelet].astype(np.float32) / 255 - 0.5
        pattern = "b t (h p) (w q) c -> b t (h w) (p q c)"
        tokens_btnd = rearrange(x_bthwc, pattern, p=patch, q=patch)
        layers_lbtnd = jnp.stack([tokens_btnd * (layer + 1) for layer in layers or (0,)])
        return FrozenOutput(tokens_btnd, None, layers_lbtnd, None)

    encoder = make_blind(patch=patch, size=size, frames=frames)
    record = {"kind": "pixels"}
    return dataclasses.replace(
        encoder, forward=forward, tubelet=tubelet, record=record, width=3 * patch**2
    )


def layout_config(encoder, data, root, **changes):
    config = propagation_config.get_config("tiny")
    config.controls = False
    changes = {"height": 32, "width": 32} | changes
    config.label_propagation.update(data=data, root=str(root), **changes)
    return resolve(config, encoder)


@pytest.mark.parametrize("side", [0, 4])
def test_frames_without_tokens_or_with_too_many_are_bad_rows(tmp_path, monkeypatch, side):
    encoder = make_pixel_encoder(patch=8)
    monkeypatch.setattr(video_propagation, "MAX_TOKENS", 10)
    root = write_davis(tmp_path / "davis", spec=dataclasses.replace(SPEC, frames=4))
    config = layout_config(encoder, "davis", root, height=side, width=side)
    with pytest.raises(UserError, match=r"none of 2 videos can be used .*pixels have \d+ tokens"):
        evaluate(encoder, tmp_path, config)


def test_davis_layout_is_scored_by_the_official_rules(tmp_path):
    encoder = make_pixel_encoder(patch=1)
    root = write_davis(tmp_path / "davis", spec=dataclasses.replace(SPEC, frames=6))
    config = layout_config(encoder, "davis", root)
    found = evaluate(encoder, tmp_path, config)
    truth = DavisMasks(root)
    scores = []
    for row in range(2):
        ids = truth.load(row)["ids"]
        static = np.repeat(ids[:1], len(ids), axis=0)
        scores.append(segmentation.score_masks(static, ids, np.unique(ids[0])[1:]))
    weights = [score.objects for score in scores]
    expected = np.average([score.mean for score in scores], weights=weights)
    static, row = found["static", "j_and_f"], found["encoder", "j_and_f"]
    assert static.value == pytest.approx(expected)
    assert (row.task, row.n) == ("DAVIS masks", 2)
    assert static.value < row.value < found["token_truth", "j_and_f"].value == 1
    np.testing.assert_allclose(np.average(row.scores.score_b, weights=weights), row.value)


def test_jhmdb_layout_gives_pck_as_the_metric_computes_it(tmp_path):
    write_jhmdb(tmp_path / "jhmdb")
    encoder = make_pixel_encoder()
    config = layout_config(encoder, "jhmdb", tmp_path / "jhmdb")
    found = evaluate(encoder, tmp_path, config)
    truth = JhmdbJoints(tmp_path / "jhmdb")
    errors = []
    for row in range(len(truth)):
        clip = truth.load(row)
        static = np.repeat(clip["joints"][:1], len(clip["joints"]), axis=0)
        errors.append(segmentation.joint_errors(static, clip["joints"], clip["visible"]))
    for threshold in (0.1, 0.2):
        row = found["static", f"pck_{threshold}"]
        assert row.value == pytest.approx(segmentation.pck(errors, threshold))
    assert row.task == "JHMDB points" and row.standard_error is None  # a single clip


def test_pck_is_the_weighted_mean_of_the_scores_of_videos():
    rng = np.random.default_rng(0)
    errors = [np.where(rng.random((9, 4)) < 0.3, np.nan, rng.random((9, 4))) for _ in range(5)]
    errors[0][:], errors[1][:, 2] = np.nan, np.nan
    right_ij = np.array([(error_tj <= 0.2).sum(axis=0) for error_tj in errors])
    count_ij = np.array([(~np.isnan(error_tj)).sum(axis=0) for error_tj in errors])
    score_i, weight_i = label_propagation.average_points(right_ij, count_ij)
    assert np.average(score_i, weights=weight_i) == pytest.approx(segmentation.pck(errors, 0.2))
    assert weight_i[0] == 0


def test_a_killed_evaluation_continues_with_the_next_video(tmp_path, monkeypatch):
    encoder = make_pixel_encoder()
    config = get_config(encoder, batch_size=3)
    expected = evaluate(encoder, tmp_path / "whole", config)
    score, scored = label_propagation._score_video, []

    def fail_late(*arguments):
        scored.append(len(scored))
        if len(scored) == 4:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(label_propagation, "_score_video", fail_late)
    save_always = functools.partial(state_file.SaveTimer, seconds=0.0)
    monkeypatch.setattr(label_propagation, "SaveTimer", save_always)
    with pytest.raises(KeyboardInterrupt):
        evaluate(encoder, tmp_path / "killed", config)
    found = evaluate(encoder, tmp_path / "killed", config)
    assert len(scored) == 4 + 3  # three were saved
    for key, row in expected.items():
        assert found[key].value == row.value
        np.testing.assert_array_equal(found[key].scores.score_b, row.scores.score_b)


def test_a_repeated_evaluation_names_unreadable_videos_again(tmp_path):
    encoder = make_pixel_encoder()
    root = write_davis(tmp_path / "davis", sequences=3)
    damaged = root / "Annotations" / "480p" / "sequence-2" / "00001.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    config = layout_config(encoder, "davis", root)
    found, notes = [], []
    for _ in range(2):  # the second one starts from the saved scores
        inputs = make_inputs(config, encoder, tmp_path / "out")
        found.append([row.value for row in LabelPropagation().evaluate(inputs, config)])
        notes.append(inputs.notes.pop_all())
    assert found[0] == found[1]
    assert notes[0] == notes[1] and "1 of 3 rows were skipped" in notes[0][0]


def test_a_changed_list_of_videos_is_evaluated_again(tmp_path):
    encoder = make_pixel_encoder()
    root = write_davis(tmp_path / "davis", sequences=3)
    config = layout_config(encoder, "davis", root)
    assert evaluate(encoder, tmp_path / "out", config)["encoder", "j_and_f"].n == 3
    before = LabelPropagation().hash_files(config)
    assert before == LabelPropagation().hash_files(config)
    (root / "ImageSets" / "2017" / "val.txt").write_text("sequence-0\nsequence-2")
    assert LabelPropagation().hash_files(config) != before
    assert evaluate(encoder, tmp_path / "out", config)["encoder", "j_and_f"].n == 2
    (root / "ImageSets" / "2017" / "val.txt").unlink()
    assert LabelPropagation().hash_files(config) == ""  # as for a sweep that is planned elsewhere


def test_every_frame_has_tokens_of_its_own_in_encoders_with_tubelets(tmp_path):
    one, two = make_pixel_encoder(frames=4), make_pixel_encoder(frames=4, tubelet=2)
    values = [
        {key: row.value for key, row in evaluate(x, tmp_path / str(x.tubelet)).items()}
        for x in (one, two)
    ]
    assert values[0] == values[1]


def test_random_encoders_have_no_reference_rows(tmp_path):
    encoder = make_pixel_encoder()
    assert {name for name, _ in evaluate(encoder, tmp_path, name="random")} == {"random"}


def test_data_sets_without_manifests_are_evaluated_by_the_command(tmp_path, monkeypatch):
    encoder = make_pixel_encoder()
    monkeypatch.setattr(evaluate_lib.pretrained, "load_frozen", lambda *_, **__: encoder)
    config = propagation_config.get_config("tiny")  # whose manifests need not exist
    config.train_manifest = config.val_manifest = str(tmp_path / "none.csv")
    config.controls = False
    root = str(write_davis(tmp_path / "davis"))
    config.label_propagation.update(data="davis", root=root, height=32, width=32)
    results = evaluate_lib.evaluate_checkpoint(config, tmp_path / "out")
    assert {row["task"] for row in results["rows"]} == {"DAVIS masks"}
    assert "J&F, %" in tables.format_table(results)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": "coco"}, "data='coco' must be one of"),
        ({"data": "davis"}, "config.label_propagation.root is empty"),
        ({"neighbors": 0}, "neighbors=0 must be at least 1"),
        ({"height": -8}, "height=-8 must be at least 0"),
        ({"height": 0}, "height=0 and width=64 must both be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be positive"),
    ],
)
def test_invalid_options_are_refused(changes, text):
    config = propagation_config.get_config("tiny")
    config.label_propagation.update(changes)
    with pytest.raises(UserError, match=text):
        LabelPropagation().check_config(config)


def test_layers_must_exist(tmp_path):
    encoder = make_pixel_encoder()
    config = propagation_config.get_config("tiny")
    config.label_propagation.layer = 12
    config = resolve(config, encoder, WORLD)
    with pytest.raises(UserError, match="layer=12 must be less than"):
        evaluate(encoder, tmp_path, config)
