"""Presets of the paper's runs for machines.

    python launch/main.py --config=configs/stage1.py:base,h200x8 --workdir=runs/stage1
    python launch/main.py --config=configs/stage2.py:base,h200x8 --workdir=runs/stage2 \
        --config.init_from=runs/stage1

A preset sets the mesh, gradient accumulation, rematerialization, the number of data workers and how
often metrics are logged. Batch size and recipe are those of the paper. According to
`launch/plan.py`, each run needs at most 80 % of the memory of a device. docs/real_run.md shows the
predicted times.
"""

import ml_collections

# `device` is a name in invnext_jax/planning/devices.py. `workers` is the number of data workers of
# each host, which needs as many cores. The number in the name of a TPU v5p slice counts cores, and
# a chip has two of them.
MACHINES = {
    "h100x1": {"device": "h100", "devices": 1, "hosts": 1, "workers": 12},
    "h100x8": {"device": "h100", "devices": 8, "hosts": 1, "workers": 64},
    "h200x1": {"device": "h200", "devices": 1, "hosts": 1, "workers": 12},
    "h200x8": {"device": "h200", "devices": 8, "hosts": 1, "workers": 64},
    "v5p-64": {"device": "v5p", "devices": 32, "hosts": 8, "workers": 32},
    "v6e-64": {"device": "v6e", "devices": 64, "hosts": 16, "workers": 32},
}

# Number of microbatches by stage, variant and machine, with `remat` "dots".
_ACCUMULATE = {
    "stage1": {
        "base": {"h100x1": 128, "h100x8": 16, "h200x1": 64, "h200x8": 8, "v5p-64": 4, "v6e-64": 4},
        "large": {
            **{"h100x1": 256, "h100x8": 16, "h200x1": 128, "h200x8": 8},
            **{"v5p-64": 4, "v6e-64": 8},
        },
        "1b": {
            **{"h100x1": 512, "h100x8": 32, "h200x1": 128, "h200x8": 16},
            **{"v5p-64": 4, "v6e-64": 8},
        },
    },
    "stage2": {
        "base": {"h100x1": 128, "h100x8": 16, "h200x1": 64, "h200x8": 8, "v5p-64": 4, "v6e-64": 4},
        "large": {"h100x1": 128, "h100x8": 16, "h200x1": 64, "h200x8": 8, "v5p-64": 2, "v6e-64": 4},
        "1b": {
            **{"h100x1": 256, "h100x8": 32, "h200x1": 128, "h200x8": 16},
            **{"v5p-64": 4, "v6e-64": 8},
        },
    },
}


def apply_machine(
    config: ml_collections.ConfigDict, name: str, other_presets: tuple[str, ...] = ()
) -> None:
    """Sets the options of the preset `name` in place; does nothing if the name is empty.

    Args:
      config: the config of a run, whose stage and variant are set.
      name: one of `MACHINES`.
      other_presets: names of presets of other kinds, for the error message.

    Raises:
      ValueError: there is no such preset for the variant of the config.
    """
    if not name:
        return
    presets = _ACCUMULATE[config.stage].get(config.variant, {})
    if name not in presets:
        known = f"choose one of {', '.join((*presets, *other_presets))}" if presets else "remove it"
        raise ValueError(f"there is no preset {name!r} for the variant {config.variant!r}: {known}")
    machine = MACHINES[name]
    config.update(accumulate=presets[name], remat="dots")
    config.mesh.update(data=1, fsdp=machine["devices"])
    config.data.workers = machine["workers"]
    if machine["devices"] == 1:
        # A step takes minutes.
        config.log.update(every_steps=5, diagnostics_every_steps=50)
        config.checkpoint.every_steps = 100
