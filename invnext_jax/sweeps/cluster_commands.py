"""The commands of `launch/sweep.py` for other tools: write their files, collect results."""

import subprocess
from pathlib import Path

from invnext_jax.errors import UserError
from invnext_jax.sweeps import commands, identity, status_table
from invnext_jax.sweeps.manifests.options import ClusterOptions
from invnext_jax.sweeps.manifests.write import System, write_manifests
from invnext_jax.sweeps.resources import add_resources
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.sweep_folder import SweepFolder


def write_files(
    folder: SweepFolder,
    request: commands.Request,
    out: Path,
    system: System,
    options: ClusterOptions,
) -> str:
    """Writes the jobs of a sweep as files for another system, and the sweep in its folder.

    Args:
      folder: the folder of the sweep. `collect` reads the results from it.
      request: the sweep.
      out: folder of the files.
      system: the system that runs the jobs.
      options: options of the files.

    Returns:
      A text for the user.

    Raises:
      UserError: the sweep or an option is invalid.
    """
    with folder.lock():
        sweep, configs = commands.expand_request(request, folder.path)
        sweep = add_resources(sweep, configs, commands.find_resources(request), folder.path)
        paths = write_manifests(sweep, folder.path, out, system, options)
        folder.write_sweep(sweep)
    lines = [f"{system.value} {path}" for path in paths]
    inputs = dict.fromkeys(path for c in configs.values() for path in identity.list_inputs(c))
    if needed := [path for path in inputs if not _is_tracked(path)]:
        lines.append(
            "must exist on the cluster at these paths, as must the videos of manifests: "
            f"{', '.join(needed)}"
        )
    return "\n".join(lines)


def _is_tracked(path: str) -> bool:
    """Returns whether a file belongs to the git repository of this folder, as on the cluster."""
    command = ["git", "ls-files", "--error-unmatch", "--", path]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # git is not installed
        return False


def collect(folder: SweepFolder) -> str:
    """Reads which jobs another system has finished, and returns the states as text.

    Raises:
      UserError: jobs run that were not started by another system.
    """
    with folder.lock():
        sweep = folder.read_sweep()
        if any(folder.read_state(name).is_active for name in sweep.jobs):
            raise UserError(
                f"--collect is for jobs that another tool started, but jobs of {folder.path} were "
                "started by this one: repeat the command that started the sweep"
            )
        Runner(folder, sweep, commands.make_local_executor(), RunOptions()).restore_states()
    return status_table.format_status(folder, sweep)
