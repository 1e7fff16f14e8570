import jax
import ml_collections
import numpy as np
import oracle_encoder
import pytest

from configs.eval.tasks import attentive_probe as probe_config
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data, inputs
from invnext_jax.evaluation.evaluators.attentive_probe import AttentiveProbe, count_classes
from invnext_jax.evaluation.evaluators.attentive_training import ClipBatches
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache

TRAIN, VAL = "world:simple/train?videos=160", "world:simple/val?videos=40"


@pytest.fixture(autouse=True)
def set_devices(monkeypatch):
    """Uses one device, which is faster. Returns a function that sets another number."""
    devices = jax.local_devices()

    def set_count(count):
        monkeypatch.setattr(jax, "local_devices", lambda: devices[:count])

    set_count(1)
    return set_count


@pytest.fixture
def config():
    config = probe_config.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=VAL, tasks=("shape", "motion"))
    config.data.update(manifest=TRAIN, frames=8, size=32, short_side=32, workers=0)
    config.data.update(crop="multi_scale", crop_scales=(1.0,))
    config.attentive_probe.update(
        width=16, heads=2, learning_rates=(1e-6, 1e-2), batch_size=16, epochs=12.0, held_out=0.25
    )
    config.attentive_probe.update(
        warmup_epochs=0.5,
        weight_decays=(0.0,),
    )
    config.attentive_probe.rand_augment.operations = 0
    config.attentive_probe.update(cutmix=0.0, repeats=1)
    return config


def make_inputs(config, encoder, folder):
    config = ml_collections.FrozenConfigDict(config)
    dataset = evaluation_data.EvaluationData(config, config.tasks)
    return inputs.EvalInputs("encoder", dataset, lambda: encoder, FeatureCache(folder / "features"))


@pytest.fixture(scope="module")
def oracle():
    """Returns an encoder whose tokens are the one-hot labels of the clip plus noise."""
    config = probe_config.get_config("tiny")
    config.update(train_manifest=TRAIN, val_manifest=VAL)
    config.data.update(manifest=TRAIN, frames=8, size=32, short_side=32, workers=0)
    dataset = evaluation_data.EvaluationData(
        ml_collections.FrozenConfigDict(config), ("shape", "motion")
    )
    parts = [dataset.videos(split) for split in evaluation_data.SPLITS]
    video = np.concatenate([part.video_bthwc for part in parts])
    labels = [np.concatenate([p.labels[task] for p in parts]) for task in ("shape", "motion")]
    truth = np.concatenate([np.eye(16)[y] for y in labels], axis=1)
    truth = np.repeat(truth[:, None], 8, axis=1)
    truth += np.random.default_rng(0).normal(0, 0.05, truth.shape)
    return oracle_encoder.make_oracle(video, truth)


@pytest.mark.parametrize("head", ["mean_query", "learned_query"])
def test_oracle_reaches_the_best_score(head, config, oracle, tmp_path):
    config.attentive_probe.update(head=head, blocks=1)
    rows = AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path), config)
    name = head.replace("_", " ")
    assert [(row.task, row.input) for row in rows] == [
        (task, what) for task in ("shape", "motion") for what in (name, f"{name}, best on val")
    ]
    assert min(row.value for row in rows) >= 0.95
    assert {row.details["learning_rate"] for row in rows} == {1e-2}
    assert rows[0].n == 40


def test_blind_encoder_scores_chance(config, tmp_path):
    config.attentive_probe.epochs = 2.0
    encoder = oracle_encoder.make_blind(width=8)
    rows = AttentiveProbe().evaluate(make_inputs(config, encoder, tmp_path), config)
    for row in rows:
        chance = 1 / row.details["classes"]
        assert row.value < chance + 4 * np.sqrt(chance / 40)


def test_encoder_in_the_step_gives_the_scores_of_cached_tokens(config, oracle, tmp_path):
    """The clips are not augmented, so only the order of the videos differs."""
    config.attentive_probe.update(augment=True, repeats=2, batch_size=8)
    subject = make_inputs(config, oracle, tmp_path)
    rows = AttentiveProbe().evaluate(subject, config)
    assert min(row.value for row in rows) >= 0.95
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("augment", [False, True])
def test_a_single_head_is_trained_on_all_videos(augment, config, oracle, tmp_path, capsys):
    config.attentive_probe.update(learning_rates=(1e-2,), augment=augment, epochs=4.0)
    rows = AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path), config)
    assert [(row.task, row.input) for row in rows] == [
        ("shape", "mean query"),
        ("motion", "mean query"),
    ]
    assert "40 of 40 steps" in capsys.readouterr().out  # 4 epochs of 160 videos


def test_a_head_on_other_videos_is_trained_from_the_start(config, oracle, tmp_path, capsys):
    config.attentive_probe.update(learning_rates=(1e-2,), epochs=2.0)
    subject = make_inputs(config, oracle, tmp_path)
    AttentiveProbe().evaluate(subject, config)
    capsys.readouterr()
    AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path), config)
    assert "20 of 20 steps" not in capsys.readouterr().out  # the state is read
    heads = list((tmp_path / "heads").glob("*.npz"))
    settings = run_metadata.config_to_json(config)["attentive_probe"]
    parts = AttentiveProbe.name, settings, ["shape", "motion"]
    assert len(heads) == 1
    assert subject.state_file(*parts, 160).find_step() == 20
    assert subject.state_file(*parts, 144).find_step() == 0


def test_batches_of_clips_have_only_the_selected_videos(config):
    selected = [3, 5, 8, 9]
    batches = ClipBatches(config.data, selected, 4, 1, seed=0)
    try:
        for step in (0, 1, 5):
            assert sorted(batches(step)["index"]) == selected
    finally:
        batches.close()


def test_augmented_training_runs(config, tmp_path):
    config.attentive_probe.update(augment=True, repeats=2, cutmix=1.0, epochs=1.0, crops=3)
    config.attentive_probe.rand_augment.operations = 2
    config.attentive_probe.batch_size = 160
    encoder = oracle_encoder.make_blind(width=8)
    subject = make_inputs(config, encoder, tmp_path)
    rows = AttentiveProbe().evaluate(subject, config)
    (note,) = subject.notes.pop_all()
    assert "a batch has 160 videos, but only" in note and "trained for 1 step only" in note
    (note,) = subject.dataset.describe_videos()  # the world has square frames
    assert note.startswith("The crops of each of the 40 held-out videos are equal")
    assert len(rows) == 4 and rows[0].n == 40
    assert np.isfinite([head["train_loss"] for head in rows[0].details["grid"]]).all()


def test_scores_do_not_depend_on_the_devices_and_a_second_run_reads_its_state(
    config, oracle, tmp_path, set_devices
):
    config.attentive_probe.epochs = 4.0
    set_devices(8)
    many = AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path / "a"), config)
    again = AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path / "a"), config)
    set_devices(1)
    one = AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path / "b"), config)
    for row, same, other in zip(many, again, one, strict=True):
        assert row.to_json() == same.to_json()
        assert row.value == other.value
        losses = [[head["train_loss"] for head in r.details["grid"]] for r in (row, other)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "cls"}, "head='cls' must be one of"),
        ({"crops": 2}, "crops=2 must be 1 or 3"),
        ({"held_out": 1.0}, "held_out=1.0 must be between 0 and 1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"cutmix": -1.0}, "cutmix=-1.0 must not be negative"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"warmup_epochs": 12.0}, "warmup_epochs=12.0 must be at least 0 and less than epochs"),
        ({"learning_rates": (0.0,)}, r"config.attentive_probe.learning_rates=\(0.0,\)"),
        ({"rand_augment": {"magnitude": 20.0}}, "rand_augment.magnitude=20.0"),
    ],
)
def test_bad_options_are_refused(config, changes, message):
    AttentiveProbe().check_config(config)
    config.attentive_probe.update(changes)
    with pytest.raises(UserError, match=message):
        AttentiveProbe().check_config(config)


def test_heads_that_do_not_divide_the_width_are_refused(config, oracle, tmp_path):
    config.attentive_probe.heads = 5
    with pytest.raises(UserError, match="heads=5 must divide the width of the encoder, 32"):
        AttentiveProbe().evaluate(make_inputs(config, oracle, tmp_path), config)


def test_a_task_with_one_class_is_refused():
    labels = {"train": {"shape": np.zeros(4, int)}, "val": {"shape": np.zeros(2, int)}}
    with pytest.raises(UserError, match="label_shape has only one class"):
        count_classes(labels, np.zeros(4, bool))
