"""Writes a web page with the training clips of a run, their masks, and dropped files.

    python launch/show_data.py --config=configs/stage1.py:tiny --out=page.html

Any field of the config can be set, as in launch/main.py.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from invnext_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/stage1.py:tiny."
)
_OUT = flags.DEFINE_string("out", "data.html", "The HTML file to write.")
_CLIPS = flags.DEFINE_integer("clips", 16, "Number of clips to show.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    del argv
    from invnext_jax import init_source
    from invnext_jax.evaluation.pages import data_page
    from invnext_jax.training import compilation

    compilation.enable_cache()
    config = init_source.copy_sizes(_CONFIG.value, errors.list_overrides())
    out = data_page.write_page(config, _OUT.value, _CLIPS.value)
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in any browser.")


if __name__ == "__main__":
    errors.run_command(main, local_paths=["out"])
