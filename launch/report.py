"""Writes a self-contained web page about runs and their evaluations, and prints the tables.

    python launch/report.py runs/s1 runs/s2 runs/e1 runs/e2 --out=report.html

A folder may also be that of a sweep. Its tables become a page next to the report, which links it.
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors

_OUT = flags.DEFINE_string("out", "report.html", "The HTML file to write.")
_CLIPS = flags.DEFINE_integer("clips", 3, "Number of clips to show. 0: none.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its tables and path."""
    from invnext_jax.evaluation import tables
    from invnext_jax.evaluation.pages import report
    from invnext_jax.sweeps.report import sweep_page
    from invnext_jax.sweeps.sweep_folder import SweepFolder
    from invnext_jax.training import compilation

    compilation.enable_cache()
    sweeps = [folder for folder in map(SweepFolder, argv[1:]) if folder.exists()]
    folders = [name for name in argv[1:] if not SweepFolder(name).exists()]
    texts, links = sweep_page.write_pages(sweeps, _OUT.value)
    for text in texts:
        print(text)
    out = report.write_report(folders, _OUT.value, _CLIPS.value, links)
    if results := report.read_evaluations(folders):
        print(tables.format_joined(results))
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in any browser.")


if __name__ == "__main__":
    errors.run_command(main, arguments=None, local_paths=["out"])
