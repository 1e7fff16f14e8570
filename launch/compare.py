"""Writes a self-contained web page that compares evaluations.

    python launch/compare.py runs/e1 runs/e2 runs/random --out=comparison.html

The arguments are workdirs of launch/evaluate.py. All other evaluations are compared with the first.
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors

_OUT = flags.DEFINE_string("out", "comparison.html", "The HTML file to write.")


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    from invnext_jax.evaluation.pages import comparison

    out = comparison.write_comparison(argv[1:], _OUT.value)
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in any browser.")


if __name__ == "__main__":
    errors.run_command(main, arguments=None, local_paths=["out"])
