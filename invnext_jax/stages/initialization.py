"""Initial parameters of a run: from an earlier run, an export, or a text model."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models.predictor import ModernBertLayer
from invnext_jax.stages import image_teacher
from invnext_jax.training import state as state_lib
from invnext_jax.weights.export import config_mismatches, open_export, require_part
from invnext_jax.weights.match import match_tree

NO_STAGE1 = "Stage 2 starts from Stage 1: set init_from to the workdir of a Stage 1 run"
_TEXT = ("width", "heads", "mlp_width", "window")


def check_text(config: Any) -> None:
    """Checks that the predictor can start from the text model, if one is configured.

    Raises:
      UserError: a text model is configured, but the predictor is not a ModernBERT.
    """
    if config.predictor.weights and config.predictor.kind != "modernbert":
        raise UserError(
            f"predictor.kind={config.predictor.kind!r} cannot start from a text model: set "
            "the kind to 'modernbert', or predictor.weights to ''"
        )


def text_layers(config: Any) -> dict[str, Any]:
    """Reads the layers of the text model that initialize the predictor.

    Layer i of the predictor is layer `last_layer - depth + 1 + i` of the text model.

    Returns:
      A dict from "predictor/layer<i>" to parameters; {} if `config.predictor.weights` is empty.

    Raises:
      UserError: the file cannot be read, a layer is missing, or the kind or size of the model is
        wrong.
    """
    p = config.predictor
    if not p.weights:
        return {}
    parts, about = open_export(p.weights)
    require_part(p.weights, parts, "text")
    described = about.get("config", {}).get("text", {})
    kind = described.get("kind", "modernbert")
    if kind != "modernbert":
        raise UserError(
            f"{p.weights} holds a text model of kind {kind!r}: set "
            "config.predictor.weights to a 'modernbert' file, or to ''"
        )
    wrong = config_mismatches(described, p, _TEXT)
    if wrong:
        fields = ", ".join(f"config.predictor.{name}={value}" for name, _, value in wrong)
        raise UserError(f"the sizes of the text model {p.weights} are different: set {fields}")
    numbers, layers = text_numbers(config), parts["text"]
    if any(not isinstance(layers.get(f"layer{number}"), dict) for number in numbers):
        raise UserError(
            f"{p.weights} holds {', '.join(sorted(layers))} but the predictor starts from layers "
            f"{numbers[0]} to {numbers[-1]}: change config.predictor.depth or "
            "config.predictor.last_layer, or use a different file"
        )
    layer = ModernBertLayer(p.heads, p.mlp_width, p.window, jnp.float32)
    key, x_bnd = jax.random.key(0), jnp.zeros((1, 1, p.width))
    expected = nn.unbox(jax.eval_shape(layer.init, key, x_bnd)["params"])
    return {
        f"predictor/layer{i}": match_tree(
            layers[f"layer{number}"], expected, f"layer {number} of the text model {p.weights}"
        )
        for i, number in enumerate(numbers)
    }


def text_numbers(config: Any) -> range:
    """Returns the indices of the text model's layers that initialize the predictor."""
    last = config.predictor.last_layer
    return range(last - config.predictor.depth + 1, last + 1)


def select_params(
    config: Any, restored: Mapping[str, Any] | None, groups: Iterable[str]
) -> dict[str, Any]:
    """Selects the parameters that replace the values of their initializers.

    Args:
      config: the run's config.
      restored: parameters of the run `config.init_from`; None if it is not set.
      groups: top-level groups that this run can use from `restored`.

    Returns:
      Parameters by path in the tree: those `groups` that are in `restored` and, if it is not empty,
      in `config.init_parts`. If the predictor is not among them, the layers of the text model are
      included.

    Raises:
      UserError: a group in `config.init_parts` does not exist, or this run can use no group of
        `config.init_from`; see also `text_layers`.
    """
    groups, restored = tuple(groups), restored or {}
    for part in config.init_parts:
        holders = {"this run takes": groups, f"init_from={config.init_from!r} holds": restored}
        for holder, names in holders.items():
            if part not in names:
                raise UserError(
                    f"config.init_parts names {part!r}, but {holder} {', '.join(names) or 'none'}: "
                    "change config.init_parts"
                )
    names = config.init_parts or groups
    start = {name: restored[name] for name in names if name in restored}
    if config.init_from and not start:
        raise UserError(
            f"config.init_from={config.init_from} holds {', '.join(restored) or 'no parameters'}, "
            f"but this run takes {', '.join(groups)}: use a run or an export that has some of "
            "them, or leave the option empty"
        )
    if "predictor" in groups and "predictor" not in start:
        start |= text_layers(config)
    return start


def check_fit(config: Any, params: Any, expected: Any) -> None:
    """Checks that parameters have the shapes and types of this model.

    Args:
      config: the run's config.
      params: parameters that were read from `config.init_from`.
      expected: the shapes and types in this run, a tree of the same structure.

    Raises:
      UserError: a parameter is missing, or has a different shape or type.
    """
    changed = state_lib.compare_shapes(
        state_lib.flat_shapes(params), state_lib.flat_shapes(expected)
    )
    if changed:
        raise UserError(
            f"the parameters of config.init_from={config.init_from} do not fit this model. "
            "Use a run with the same sizes:",
            *changed,
        )


def describe_start(
    config: Any, start: Mapping[str, Any], groups: Iterable[str], source: Any = None
) -> list[str]:
    """Describes how the groups that are not entirely in `start` are initialized.

    Heads that start from a run with a different image teacher are described too.

    Args:
      config: the run's config.
      start: output of `select_params`.
      groups: all top-level groups of the run.
      source: the config of `config.init_from`; None if it is not set.
    """
    sentences = []
    for name in sorted(set(groups) - set(start)):
        if name == "predictor" and any(path.startswith("predictor/") for path in start):
            numbers = text_numbers(config)
            sentences.append(
                f"predictor layers: text model {config.predictor.weights}, "
                f"layers {numbers[0]} to {numbers[-1]}"
            )
        elif name == "predictor":
            sentences.append(
                "predictor is initialized without a text model (config.predictor.weights is empty)"
            )
        elif config.init_from:
            sentences.append(
                f"{name} is initialized randomly: it is not taken from {config.init_from}"
            )
    if change := image_teacher.describe_change(config, source, start):
        sentences.append(change)
    return sentences


def unused_options(config: Any, start: Iterable[str]) -> dict[str, str]:
    """Returns the options that the parameters of `config.init_from` replace, with the reason.

    Args:
      config: the run's config.
      start: names of the parameter groups that are read from `config.init_from`.
    """
    unused, source = {}, f"is read from config.init_from={config.init_from}"
    if "encoder" in start:
        unused["encoder.layer_scale"] = f"the encoder {source}: remove the option"
    if "predictor" in start:
        groups = tuple(sorted(name for name in start if "/" not in name and name != "predictor"))
        change = f"add --config.init_parts={groups!r}"
        unused["predictor.weights"] = f"the predictor {source}: {change}"
    return unused


def require_encoder(config: Any, restored: Mapping[str, Any] | None) -> None:
    """Checks that the run `config.init_from` has an encoder.

    Raises:
      UserError: `config.init_from` is not set, or the run has no encoder.
    """
    if restored is None:
        raise UserError(NO_STAGE1)
    if "encoder" not in restored:
        raise UserError(
            f"init_from={config.init_from} has no encoder, only {', '.join(restored)}: use the "
            "workdir of a Stage 1 run"
        )
