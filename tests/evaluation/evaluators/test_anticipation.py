"""Anticipation: an oracle has perfect recall, and an encoder with constant tokens chance."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import oracle_encoder
import pytest
import truth_layouts
import video_files

from configs import stage2
from configs.eval.tasks import anticipation as anticipation_config
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data, inputs, pretrained
from invnext_jax.evaluation.evaluators import anticipation
from invnext_jax.evaluation.evaluators.anticipation import CONTEXT, FUTURE, Anticipation
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.evaluation.truth import epic_kitchens
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.weights import export

TASKS = ("verb", "noun", "action")
TRAIN = "world:anticipation/train?videos=480&size=16&frames=6"
VAL = "world:anticipation/val?videos=48&size=16&frames=6"
OTHER = "world:simple/train?videos=4&size=16&frames=6"
CONTEXT_FRAMES = 4


@pytest.fixture(autouse=True)
def one_local_device(monkeypatch):
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.fixture
def config():
    config = anticipation_config.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=VAL, batch_size=16)
    config.data.update(manifest=TRAIN, frames=6, size=16, short_side=16, workers=0)
    config.data.update(crop="multi_scale", crop_scales=(1.0,))
    config.anticipation.update(
        context_frames=CONTEXT_FRAMES, heads=2, blocks=0, batch_size=32, epochs=8.0
    )
    config.anticipation.update(learning_rates=(1e-6, 2e-2), weight_decays=(1e-3,), recall_at=(1,))
    config.anticipation.rand_augment.operations = 0
    return config


def make_inputs(config, encoder, folder):
    config = ml_collections.FrozenConfigDict(config)
    dataset = evaluation_data.EvaluationData(config, config.tasks)
    return inputs.EvalInputs("encoder", dataset, lambda: encoder, FeatureCache(folder / "features"))


def evaluate(config, encoder, folder):
    return Anticipation().evaluate(make_inputs(config, encoder, folder), config)


@pytest.fixture(scope="module")
def oracle():
    """Returns an encoder whose tokens are the labels of the action after the context (one-hot)."""
    config = anticipation_config.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=VAL, batch_size=16)
    config.data.update(manifest=TRAIN, frames=6, size=16, short_side=16, workers=0)
    dataset = evaluation_data.EvaluationData(ml_collections.FrozenConfigDict(config), TASKS)
    parts = [dataset.videos(split) for split in evaluation_data.SPLITS]
    video = np.concatenate([part.video_bthwc for part in parts])[:, :CONTEXT_FRAMES]
    labels = [np.concatenate([part.labels[task] for part in parts]) for task in TASKS]
    truth = np.concatenate([np.eye(k)[y] for y, k in zip(labels, (8, 8, 64), strict=True)], axis=1)
    return oracle_encoder.make_oracle(video, np.repeat(truth[:, None], CONTEXT_FRAMES, axis=1))


def test_oracle_reaches_the_best_recall(config, oracle, tmp_path):
    rows = evaluate(config, oracle, tmp_path)
    assert [(row.task, row.input) for row in rows] == [
        (task, what) for task in TASKS for what in (CONTEXT, f"{CONTEXT}, best on val")
    ]
    assert min(row.value for row in rows) >= 0.95
    assert {row.metric for row in rows} == {"class_mean_recall@1"}
    assert {row.details["predicted_frames"] for row in rows} == {0}
    assert all(row.details["videos_digest"] for row in rows)
    again = evaluate(config, oracle, tmp_path)
    assert [row.to_json() for row in again] == [row.to_json() for row in rows]


def test_blind_encoder_scores_chance(config, tmp_path):
    config.anticipation.epochs = 2.0
    encoder = oracle_encoder.make_blind(width=8, size=16, frames=6)
    for row in evaluate(config, encoder, tmp_path):
        if row.task != "action":  # the score of 64 classes is too coarse
            chance = row.details["chance"]
            assert chance == pytest.approx(1 / row.details["classes"])
            # A blind encoder predicts the same class for all videos.
            assert row.value == pytest.approx(chance)


@pytest.fixture(scope="module")
def stage2_encoder(tmp_path_factory):
    config = stage2.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=16, size=16, frames=6)
    config.predictor.update(width=16, depth=1, heads=2, mlp_width=16)
    config.data.update(size=16, frames=6)
    stage = registry.find_stage(config)
    init = jax.jit(lambda key: stage.init_params(config, stage.make_model(config), key))
    path = tmp_path_factory.mktemp("anticipation") / "model.safetensors"
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(path, mesh_lib.unbox(init(jax.random.key(0))), about)
    return pretrained.load_frozen(path)


def losses(rows):
    return [[head["train_loss"] for head in row.details["grid"]] for row in rows]


def test_both_kinds_of_tokens_have_rows_that_do_not_depend_on_the_batches(
    config, stage2_encoder, tmp_path
):
    config.train_manifest = config.data.manifest = TRAIN.replace("480", "64")
    config.anticipation.epochs = 1.0
    rows = evaluate(config, stage2_encoder, tmp_path / "a")
    assert [row.input for row in rows if row.task == "verb"] == [
        *(CONTEXT, f"{CONTEXT}, best on val", FUTURE, f"{FUTURE}, best on val")
    ]
    predicted = {row.input.split(",")[0]: row.details["predicted_frames"] for row in rows}
    assert predicted == {CONTEXT: 0, FUTURE: 2}
    config.batch_size = 7  # batch size of the extraction
    other = evaluate(config, stage2_encoder, tmp_path / "b")
    assert [row.value for row in other] == [row.value for row in rows]
    np.testing.assert_allclose(losses(other), losses(rows), rtol=1e-5)


def test_encoder_in_the_step_reaches_the_scores_of_stored_tokens(config, oracle, tmp_path):
    config.anticipation.augment = True
    rows = evaluate(config, oracle, tmp_path)
    assert min(row.value for row in rows) >= 0.95
    assert not (tmp_path / "features").exists()


def test_epic_kitchens_with_the_base_config(tmp_path):
    """Trains on videos in the layout of EPIC-KITCHENS-100, with augmentation."""
    train = [("P01_01", 1.5, 2.0, verb, noun) for verb in (0, 3) for noun in (5, 7)] * 3
    val = [("P01_01", 1.7, 2.0, 0, 5), ("P01_01", 1.8, 2.2, 3, 7), ("P01_01", 1.8, 2.2, 3, 9)]
    truth_layouts.write_epic(tmp_path, {"train": train, "validation": val})
    (tmp_path / "videos" / "P01" / "videos").mkdir(parents=True)
    video_files.write_video(tmp_path / "videos" / "P01" / "videos" / "P01_01.MP4")
    found = epic_kitchens.write_manifests(tmp_path, tmp_path / "videos", tmp_path / "out")
    config = anticipation_config.get_config("base")
    config.update(train_manifest=str(found["train"]), val_manifest=str(found["val"]), batch_size=2)
    config.data.update(manifest=str(found["train"]), frames=4, size=16, short_side=16, workers=0)
    config.anticipation.update(batch_size=4, epochs=1.0, heads=2, blocks=1, held_out=0.25)
    config.anticipation.update(learning_rates=(1e-3,), weight_decays=(1e-2,))
    Anticipation().check_config(config)
    encoder = oracle_encoder.make_blind(width=8, size=16, frames=4)
    rows = {row.task: row for row in evaluate(config, encoder, tmp_path)}
    assert {row.metric for row in rows.values()} == {"class_mean_recall@5"}
    assert [(rows[task].n, rows[task].details["dropped"]) for task in TASKS] == [
        *((3, 0), (2, 1)),  # noun 9 has no training video
        (2, 0),  # its action has no class, so that it has no label
    ]
    assert rows["action"].value == 1.0  # two classes are among the best five


def test_manifests_of_the_section_replace_those_of_the_config(config, oracle, tmp_path):
    settings = config.anticipation
    settings.update(train_manifest=TRAIN, val_manifest=VAL)
    Anticipation().check_config(config)
    assert not Anticipation().needs_manifests(config)
    # The tasks of the other manifests do not matter.
    config.update(
        train_manifest=OTHER, val_manifest=OTHER.replace("train", "val"), tasks=("color",)
    )
    rows = evaluate(config, oracle, tmp_path)
    assert {row.task for row in rows} == set(TASKS)
    assert min(row.value for row in rows) >= 0.95
    key = Anticipation().hash_files(config)
    settings.val_manifest = VAL.replace("48", "47")
    assert Anticipation().hash_files(config) != key


def test_missing_manifests_of_the_section_are_skipped(config, oracle, tmp_path, capsys):
    missing = str(tmp_path / "anticipation" / "train.csv")
    config.anticipation.update(train_manifest=missing, val_manifest=VAL)
    assert evaluate(config, oracle, tmp_path) == []
    expected = f"anticipation: skipped, because {missing} does not exist"
    assert expected in capsys.readouterr().out
    assert Anticipation().hash_files(config) == f"{missing} is missing"


def test_class_names_of_the_section_are_compared_before_its_stored_rows_are_used(config, tmp_path):
    for split, names in (("train", ("cut", "mix")), ("val", ("mix", "cut"))):
        rows = [f"{number}.mp4,x,{number}" for number in range(2)]
        path = tmp_path / f"{split}.csv"
        path.write_text("\n".join(["path,source,label_verb", *rows]))
        config.anticipation[f"{split}_manifest"] = str(path)
        path.with_suffix(".classes.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match="number the classes of verb differently"):
        Anticipation().hash_files(config)


def test_focal_loss_sums_tasks_and_ignores_clips_without_a_label():
    logits = [jnp.array([[2.0, -1.0], [0.5, 0.0]]), jnp.array([[1.0, 0.0], [3.0, -3.0]])]
    targets = [jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])]

    def by_hand(x, y):  # arXiv 1708.02002, equation 5, with alpha 0.25 and gamma 2
        p = 1 / (1 + np.exp(-x))
        p = p if y else 1 - p
        return -(0.25 if y else 0.75) * (1 - p) ** 2 * np.log(p)

    first = by_hand(2.0, 1) + by_hand(-1.0, 0)
    second = (by_hand(1.0, 0) + by_hand(0.0, 1) + by_hand(3.0, 1) + by_hand(-3.0, 0)) / 2
    found = anticipation.focal_loss(logits, targets)
    assert float(found) == pytest.approx(first + second, rel=1e-5)
    twice = anticipation.focal_loss([*logits, *logits], targets)
    assert float(twice) == pytest.approx(2 * (first + second), rel=1e-5)
    gradient = jax.grad(lambda x: anticipation.focal_loss([x, logits[1]], targets))(logits[0])
    np.testing.assert_array_equal(gradient[1], 0.0)
    assert np.abs(gradient[0]).min() > 0


def test_each_probe_reads_its_own_tokens(config):
    shapes = {CONTEXT: (4, 8), FUTURE: (6, 16)}
    module = anticipation.build_module(config.anticipation, [3, 5], shapes)
    x_bnd = jax.random.normal(jax.random.key(0), (2, 6, 16))
    params = jax.jit(module.init)(jax.random.key(1), x_bnd)
    apply = jax.jit(module.apply)
    found = apply(params, x_bnd)
    assert [y.shape for y in found] == [(2, 3), (2, 5), (2, 3), (2, 5)]
    changed = apply(params, x_bnd.at[:, 4:].add(1.0).at[:, :, 8:].add(1.0))
    for number, (y, other) in enumerate(zip(found, changed, strict=True)):
        assert np.array_equal(y, other) == (number < 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_frames": 7}, "context_frames=7 must be between 0 and config.data.frames=6"),
        ({"gap_frames": -1}, "gap_frames=-1 must not be negative"),
        ({"recall_at": ()}, r"recall_at=\(\) must be positive numbers"),
        ({"held_out": 0.0}, "held_out=0.0 must be between 0 and 1"),
        ({"learning_rates": (0.0,)}, r"config.anticipation.learning_rates=\(0.0,\)"),
        ({"epochs": 0.0}, "epochs=0.0 must be positive"),
        ({"rand_augment": {"magnitude": 20.0}}, "rand_augment.magnitude=20.0"),
    ],
)
def test_bad_options_are_refused(config, changes, message):
    Anticipation().check_config(config)
    config.anticipation.update(changes)
    with pytest.raises(UserError, match=message):
        Anticipation().check_config(config)


def test_heads_that_do_not_divide_the_width_are_refused(config, oracle, tmp_path):
    config.anticipation.heads = 7
    with pytest.raises(UserError, match="heads=7 must divide the width of the tokens, 80"):
        evaluate(config, oracle, tmp_path)
