"""Writes a self-contained web page about runs and their evaluations, and prints the tables.

python launch/report.py runs/s1 runs/s2 runs/e1 runs/e2 --out=report.html
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.evaluation import tables
from invnext_jax.evaluation.pages import report
from invnext_jax.training import compilation

_OUT = flags.DEFINE_string("out", "report.html", "The HTML file to write.")
_CLIPS = flags.DEFINE_integer("clips", 3, "Number of clips to show. 0: none.")


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its tables and path."""
    compilation.enable_cache()
    out = report.write_report(argv[1:], _OUT.value, _CLIPS.value)
    if results := report.read_evaluations(argv[1:]):
        print(tables.format_joined(results))
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in any browser.")


if __name__ == "__main__":
    errors.run_command(main, arguments=None, local_paths=["out"])
