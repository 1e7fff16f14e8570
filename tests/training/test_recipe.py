import math

import ml_collections
import pytest

from configs import ablations, stage1, stage2
from invnext_jax.errors import UserError
from invnext_jax.training import recipe

VIDEOS = 1_100_000


def base(stage=stage1, **changes):
    config = stage.get_config("base")
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("stage", "variant", "batch", "steps", "warmup", "peak", "final"),
    [
        (stage1, "base", 2048, 33_294, 3759, 8e-3, 8e-5),
        (stage1, "large", 2048, 33_294, 3759, 8e-3, 8e-5),
        (stage1, "1b", 2048, 33_294, 3759, 8e-3, 8e-5),
        (stage2, "base", 2048, 54_237, 0, 8e-4, 8e-5),
        (stage2, "large", 1024, 108_474, 0, 4e-4, 4e-5),
        (stage2, "1b", 1024, 108_474, 0, 4e-4, 4e-5),
    ],
)
def test_numbers_of_the_paper_are_exact(stage, variant, batch, steps, warmup, peak, final):
    config, found = recipe.resolve_config(stage.get_config(variant), VIDEOS)
    optimizer = config.optimizer
    assert (config.batch_size, config.total_steps, optimizer.warmup_steps) == (batch, steps, warmup)
    assert (optimizer.learning_rate, optimizer.min_learning_rate) == (peak, final)
    assert found.set_by_hand == ()


def test_epochs_of_the_text_are_those_of_the_paper():
    config = base(**{"epochs": 50.0, "optimizer.warmup_epochs": 5.0})
    found = recipe.resolve(config, VIDEOS)
    assert (found.total_steps, found.warmup_steps) == (26_850, 2685)
    assert recipe.resolve(base(stage2, epochs=100.0), VIDEOS).total_steps == 53_700


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_tiny_variants_do_not_depend_on_batch_and_data(stage):
    config = stage.get_config("tiny")
    resolved, found = recipe.resolve_config(config, 16)
    assert resolved.to_dict() == config.to_dict()
    assert found.set_by_hand == tuple(recipe.SOURCES)


@pytest.mark.parametrize("batch", [64, 256, 1024, 3000, 8192])
@pytest.mark.parametrize("videos", [700, 20_000, 240_000, 3_000_000])
def test_batch_and_data_change_steps_and_rates_but_not_epochs(batch, videos):
    found = recipe.resolve(base(batch_size=batch), videos)
    step = batch / videos  # epochs
    assert found.epochs == pytest.approx(62, rel=0.01, abs=step)
    assert found.warmup_steps * step == pytest.approx(7, rel=0.01, abs=step)
    assert found.learning_rate == pytest.approx(1e-3 * batch / 256)
    assert found.min_learning_rate == pytest.approx(1e-5 * batch / 256)


def test_accumulation_and_repeats_change_no_number():
    plain = recipe.resolve(base(), VIDEOS)
    found = recipe.resolve(base(**{"accumulate": 8, "data.repeats": 4}), VIDEOS)
    assert found.total_steps == plain.total_steps
    assert found.learning_rate == plain.learning_rate
    assert "8 microbatches of 256" in found.describe()
    assert "15.5 times decoded" in found.describe()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_steps", 123),
        ("optimizer.warmup_steps", 0),
        ("optimizer.learning_rate", 3e-4),
        ("optimizer.min_learning_rate", 0.0),
    ],
)
def test_a_number_set_by_hand_wins_and_is_named(name, value):
    found = recipe.resolve(base(batch_size=256, **{name: value}), VIDEOS)
    assert getattr(found, name.rpartition(".")[2]) == value
    assert found.set_by_hand == (name,)
    assert name in found.describe().splitlines()[-1]
    others = recipe.resolve(base(batch_size=256), VIDEOS)
    changed = [n for n in recipe.SOURCES if getattr(found, n.rpartition(".")[2]) != value]
    for other in changed:
        field = other.rpartition(".")[2]
        assert getattr(found, field) == getattr(others, field)


def test_resolving_does_not_modify_the_config():
    config = base()
    before = config.to_dict()
    recipe.resolve_config(config, 1000)
    assert config.to_dict() == before


def test_every_ablation_has_the_epochs_of_its_stage():
    for row, (stage, _) in ablations.ROWS.items():
        config = ablations.get_config(row)
        config.batch_size = 512
        found = recipe.resolve(config, VIDEOS)
        assert found.epochs == pytest.approx({"stage1": 62, "stage2": 101}[stage], rel=1e-3), row


def test_description_has_steps_epochs_and_rates():
    text = recipe.resolve(base(batch_size=256), 100_000).describe()
    assert (
        text.splitlines()[0] == "recipe: 24,180 steps of 256 clips, 61.9 epochs of 100,000 videos"
    )
    assert "2,730 steps (6.99 epochs) of warm-up to 0.001" in text
    assert text.endswith("cosine decay to 1e-05")


def test_warm_up_longer_than_the_run_is_a_warning():
    found = recipe.resolve(base(total_steps=1000), VIDEOS)
    assert "3,759 steps does not end within the 1,000 steps" in found.warning()
    assert not recipe.resolve(base(), VIDEOS).warning()
    one = recipe.resolve(base(total_steps=1), VIDEOS).warning()
    assert one.startswith("the only step of the run") and "learning rate is 0" in one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 0}, "config.total_steps=0 must be at least 1"),
        ({"total_steps": -2}, "config.total_steps=-2 must be at least 1"),
        ({"epochs": 0.0}, "config.epochs is 0"),
        ({"epochs": -1.0}, "config.epochs=-1.0 must be at least 0"),
        ({"epochs": math.inf}, "config.epochs=inf must be a finite number"),
        ({"optimizer.warmup_steps": -2}, "config.optimizer.warmup_steps=-2 must be at least 0"),
        ({"optimizer.learning_rate": -0.1}, "config.optimizer.learning_rate=-0.1 must be at least"),
        ({"optimizer.learning_rate": math.nan}, "learning_rate=nan must be a finite number"),
        ({"optimizer.base_learning_rate": -1.0}, "base_learning_rate=-1.0 must be at least 0"),
    ],
)
def test_option_out_of_range_is_an_error(changes, message):
    with pytest.raises(UserError, match=message):
        recipe.check_config(base(**changes))


def test_final_rate_above_the_peak_is_an_error():
    with pytest.raises(UserError, match="min_learning_rate=8e-05 exceeds .*learning_rate=1e-05"):
        recipe.resolve(base(**{"optimizer.learning_rate": 1e-5}), VIDEOS)


def test_less_than_a_step_is_an_error():
    with pytest.raises(UserError, match="config.epochs=0.1 of 1000 videos is less than one step"):
        recipe.resolve(base(epochs=0.1), 1000)


SAVED = {
    "total_steps": 33_294,
    "optimizer": {"warmup_steps": 3759, "learning_rate": 8e-3, "min_learning_rate": 8e-5},
}


def test_run_of_a_version_without_epochs_keeps_its_numbers():
    config, kept = recipe.keep_saved(base(**{"optimizer.learning_rate": 1e-3}), SAVED)
    found = recipe.resolve(config, 240_000)
    assert (found.total_steps, found.warmup_steps) == (33_294, 3759)
    assert (found.learning_rate, found.min_learning_rate) == (1e-3, 8e-5)
    assert set(kept) == set(recipe.SOURCES) - {"optimizer.learning_rate"}
    _, kept = recipe.keep_saved(base(), {**SAVED, "epochs": 62.0})
    assert not kept


def test_change_of_the_schedule_has_the_rates_of_the_cosine():
    saved = ml_collections.ConfigDict(SAVED)
    config = ml_collections.ConfigDict({**SAVED, "total_steps": 66_588})
    assert recipe.describe_change(saved, saved, 33_294) == ""
    assert recipe.describe_change(saved, config, 3_000) == ""  # during the warm-up

    def rate(updates, total):
        share = (updates - 3759) / (total - 3759)
        return 8e-5 + (8e-3 - 8e-5) * 0.5 * (1 + math.cos(math.pi * share))

    text = recipe.describe_change(saved, config, 33_000)
    assert "from 33,294 to 66,588" in text
    assert f"from {rate(33_000, 33_294):.2e} to {rate(33_000, 66_588):.2e}" in text
    assert f"the last step had {rate(32_999, 33_294):.2e}" in text
