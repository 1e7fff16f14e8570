"""Options of an evaluation without effect are refused if the command line sets them."""

import ml_collections
import pytest

from configs.eval import world
from configs.eval.tasks import attentive_probe, label_propagation, linear_probe
from invnext_jax.errors import UserError
from invnext_jax.evaluation import unused_options
from invnext_jax.evaluation.evaluators import registry


def check(config, *overrides):
    config = ml_collections.ConfigDict(config)
    config.update(
        train_manifest="world:simple/train?videos=2", val_manifest="world:simple/val?videos=2"
    )
    evaluators = registry.find_evaluators(config.evaluators)
    resolved = ml_collections.FrozenConfigDict(config)
    unused_options.check_overrides(config, resolved, overrides, evaluators)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("data.flip", "neither augmented"),
        ("data.crop", "neither augmented"),
        ("data.short_side", "largest square of the frame"),
        ("data.weights", "neither augmented nor sampled"),
        ("data.by_source.ssv2.flip", "neither augmented"),
        ("data.repeats", "its own number of clips"),
        ("data.manifest", "config.val_manifest"),
        ("data.stride", "'dense'"),
        ("knn.temperature", "'knn' or 'few_shot'"),
        ("trees", "config.controls"),
        ("supervised.steps", "config.controls"),
    ],
)
def test_option_that_the_probe_does_not_read_is_refused(name, reason):
    with pytest.raises(UserError, match=rf"config\.{name}=.* is not used, because .*{reason}"):
        check(linear_probe.get_config(), name)


def test_options_that_are_read_are_accepted():
    names = ("data.sampling", "data.frames", "data.workers", "data.root", "poolings", "seed")
    check(linear_probe.get_config(), *names, "inverse_penalties", "streaming.epochs", "tasks")
    config = attentive_probe.get_config()
    check(config, "data.crop", "data.jitter", "attentive_probe.cutmix")
    found = unused_options.find_unused(config, registry.find_evaluators(config.evaluators))
    assert not {"data.flip", "data.weights", "data.by_source.ssv2.flip"} & set(found)
    check(world.get_config(), "knn.shots", "label_propagation.context", "attentive_probe.epochs")
    config = linear_probe.get_config("tiny")
    check(config, "trees", "supervised.steps", "supervised.batch_size")


def test_reasons_depend_on_the_options_of_the_evaluators():
    config = attentive_probe.get_config()
    config.attentive_probe.augment = False
    with pytest.raises(UserError, match=r"set config\.attentive_probe\.augment=True"):
        check(config, "data.flip")
    config = linear_probe.get_config()
    config.controls = True
    with pytest.raises(UserError, match=r"config\.supervised\.steps is 0"):
        check(config, "supervised.learning_rate")
    check(config, "supervised.steps")


def test_manifests_that_no_evaluator_needs_are_not_read():
    config = label_propagation.get_config("tiny")
    config.label_propagation.data = "davis"
    config.update(train_manifest="absent.csv", val_manifest="absent.csv")
    evaluators = registry.find_evaluators(config.evaluators)
    unused_options.check_overrides(config, config, ["data.frames"], evaluators)


@pytest.mark.parametrize("section", ["attentive_probe", "anticipation", "text"])
def test_options_of_augmentation_are_read_by_every_section_that_augments(section):
    evaluators = [e for e in registry.EVALUATORS.values() if section in e.options]
    config = linear_probe.get_config()
    config[section] = ml_collections.ConfigDict({"augment": False})
    assert "data.flip" in unused_options.find_unused(config, evaluators)
    config[section].augment = True
    assert "data.flip" not in unused_options.find_unused(config, evaluators)


@pytest.mark.parametrize("option", ["cutmix", "repeats", "rand_augment.magnitude", "blocks"])
def test_options_without_effect_because_of_their_section_are_refused(option):
    config = attentive_probe.get_config()
    config.attentive_probe.update(augment=option == "blocks", head="mean_query")
    name = f"attentive_probe.{option}"
    with pytest.raises(UserError, match=f"{name}=.*is not used, because config.attentive_probe"):
        check(config, name)
    config.attentive_probe.update(augment=True, head="learned_query")
    check(config, name)
    with pytest.raises(UserError, match="attentive_probe.head is 'learned_query'"):
        check(config, "attentive_probe.mlp")
