"""Checks of a config that depend on the mesh."""

import ml_collections
from jax.sharding import AbstractMesh, Mesh

from invnext_jax.errors import UserError
from invnext_jax.training.mesh import SEQUENCE_ATTENTION, batch_shards, make_mesh


def make_checked_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """Makes the mesh of a run over all devices, and checks the config with it.

    Raises:
      UserError: see `mesh.make_mesh` and `check_config`.
    """
    mesh = make_mesh(config.mesh)
    check_config(config, mesh)
    return mesh


def check_config(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Checks that the mesh can split the batch and the attention heads.

    Raises:
      UserError: see `check_batch` and `check_heads`.
    """
    check_batch(config, mesh)
    check_heads(config, mesh)


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Checks that the batch can be split over the mesh.

    Raises:
      UserError: the batch size is not divisible by the number of shards times
          `config.accumulate`.
    """
    size, shards = config.batch_size, batch_shards(mesh)
    if size % shards:
        raise UserError(
            f"config.batch_size={size} must be divisible by the {shards} devices of the mesh "
            "axes data and fsdp: change the batch size or the mesh"
        )
    if size % (shards * config.accumulate):
        raise UserError(
            f"config.batch_size={size} must be divisible by config.accumulate={config.accumulate} "
            f"times the {shards} devices of the mesh axes data and fsdp"
        )


def check_heads(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Checks `config.sequence_attention`.

    Raises:
      UserError: its value is unknown, or it splits heads that the mesh does not divide.
    """
    chosen, shards = config.sequence_attention, mesh.shape["tensor"] * mesh.shape["sequence"]
    if chosen not in SEQUENCE_ATTENTION:
        names = " or ".join(map(repr, SEQUENCE_ATTENTION))
        raise UserError(f"config.sequence_attention={chosen!r} must be {names}")
    for name in ("encoder", "predictor") if chosen == "all_to_all" else ():
        if config[name].heads % shards:
            raise UserError(
                f"config.{name}.heads={config[name].heads} must be divisible by the {shards} "
                f"devices of the mesh axes tensor and sequence for config.sequence_attention="
                f"{chosen!r}: set it to 'gather', or change the mesh"
            )


def unused_options(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the options without effect; see `config_checks.unused_options`."""
    if config.mesh.sequence != 1:
        return {}
    return {"sequence_attention": "config.mesh.sequence is 1: set it to the number of devices"}
