"""Checks the options of JAX that change random numbers or dtypes.

Users set them by environment variables, often for other programs. A run that is resumed with
another value would draw other masks and noise.
"""

import jax

from invnext_jax.errors import UserError

# The values with which runs and evaluations are trained, resumed and compared.
_VALUES = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}


def check_options() -> None:
    """Checks that JAX draws the same random numbers, in the same dtypes, in all commands.

    Raises:
      UserError: an option of JAX has another value.
    """
    for name, expected in _VALUES.items():
        value = getattr(jax.config, name)
        if value != expected:
            raise UserError(
                f"the environment variable {name.upper()} or the code sets JAX's option "
                f"{name}={value!r}, which changes random numbers or dtypes, so that runs cannot be "
                f"resumed or compared: unset the variable, or set it to {expected!r}"
            )
