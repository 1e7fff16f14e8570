"""A small Stage 2 config for tests of the planner."""

from configs import stage2


def small(remat="none", **mesh):
    config = stage2.get_config("tiny")
    config.data.frames = config.encoder.frames = 2
    config.encoder.depth = 2
    config.update(batch_size=8, remat=remat)
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1, **mesh})
    return config
