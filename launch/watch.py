"""Shows a run or a sweep on a local web page while it runs.

    python launch/watch.py runs/s1
    python launch/watch.py sweeps/lr --port=8010

The page is updated without a reload: state, losses, diagnostics, throughput, hosts, and masks,
reconstructions and features of the newest checkpoint; for a sweep, jobs, tables and the curves of
all arms. Only this machine can open it. From another one: ssh -L 8008:127.0.0.1:8008 HOST
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from invnext_jax import errors

_PORT = flags.DEFINE_integer("port", 8008, "The port on 127.0.0.1. 0: a free one.")
_CLIPS = flags.DEFINE_integer(
    "clips",
    2,
    "Number of clips that are drawn for each new checkpoint, on the CPU. 0: none.",
    lower_bound=0,
)


def main(argv: Sequence[str]) -> None:
    """Serves the page of a folder."""
    if len(argv) != 2:
        raise errors.UserError(
            "the folder is missing: give the workdir of a run or the folder of a sweep"
        )
    errors.check_local_path("the folder", argv[1])
    import jax

    from invnext_jax.watching import watch

    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the run
    server = watch.open_server(Path(argv[1]), _PORT.value, _CLIPS.value)
    print(f"{argv[1]} is shown on {server.url} (Ctrl-C ends this)", flush=True)
    watch.serve(server)


if __name__ == "__main__":
    errors.run_command(main, arguments=1)
