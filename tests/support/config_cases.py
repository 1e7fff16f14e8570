"""Small configs of Stage 2, and the names and values of the options of a config."""

from collections.abc import Mapping

from configs import stage2


def small(remat="none", **mesh):
    """Makes a config for tests of the planner."""
    config = stage2.get_config("tiny")
    config.data.frames = config.encoder.frames = 2
    config.encoder.depth = 2
    config.update(batch_size=8, remat=remat)
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1, **mesh})
    return config


def value(config, name):
    """Returns the value of the option with this full name."""
    for part in name.split("."):
        config = config[part]
    return config


def field_names(config, prefix=""):
    """Yields the full names of all options."""
    for name, field in config.items():
        if isinstance(field, Mapping) and name != "by_source":
            yield from field_names(field, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
