"""Config checks that are the same for all stages.

Each group of options is checked by the module that uses it. Each stage checks its own options.
"""

import ml_collections

from invnext_jax.checkpointing import retention
from invnext_jax.data import pipeline
from invnext_jax.models import attention, dot_general, encoder, scan
from invnext_jax.monitoring import profiling, reporter
from invnext_jax.training import recipe
from invnext_jax.training import step as step_lib


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks the options that all stages share.

    Raises:
        UserError: an option has an invalid value.
    """
    encoder.check_config(config)
    retention.check_config(config.checkpoint)
    step_lib.check_config(config)
    recipe.check_config(config)
    reporter.check_config(config)
    profiling.check_config(config)
    pipeline.check_config(config.data)
    dot_general.check_config(config)
    attention.check_config(config)
    scan.check_config(config)
