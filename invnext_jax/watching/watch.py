"""Shows a run or a sweep on a local web page until Ctrl-C."""

import os
from pathlib import Path

from invnext_jax import sanitize
from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file
from invnext_jax.sweeps.sweep_folder import SweepFolder
from invnext_jax.watching.live_page import LivePage, View
from invnext_jax.watching.run_view import RunView
from invnext_jax.watching.server import WatchServer
from invnext_jax.watching.sweep_view import SweepView

SECONDS = 2.0  # between two looks at the files


class FolderView:
    """Renders the sections of a run or a sweep, whichever the folder becomes; see `View`.

    Args:
      folder: workdir of a run or folder of a sweep, which need not exist yet.
      clips: see `RunView`.
    """

    names = tuple(dict.fromkeys(SweepView.names + RunView.names))

    def __init__(self, folder: Path, clips: int):
        self._sweep = SweepFolder(folder)
        self._view: View = RunView(folder, clips)

    def render(self) -> dict[str, str]:
        """Renders the sections whose files have changed."""
        if isinstance(self._view, RunView) and self._sweep.exists():
            self._view.close()
            self._view = SweepView(self._sweep)
        return self._view.render()

    def close(self) -> None:
        """Closes the view of the run or the sweep."""
        self._view.close()


def open_server(folder: Path, port: int, clips: int, seconds: float = SECONDS) -> WatchServer:
    """Returns a server of the page of a folder.

    Args:
      folder: workdir of a run or folder of a sweep, which need not exist yet.
      port: the port; 0 for a free one.
      clips: number of clips of a run that are drawn for each new checkpoint.
      seconds: seconds between two looks at the files.

    Raises:
      UserError: `folder` is a file or the workdir of an evaluation, or the port cannot be used.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: give the workdir of a run or of a sweep")
    if os.path.isfile(folder / results_file.RESULTS):
        raise UserError(
            f"{folder} is the workdir of an evaluation: use launch/report.py, or give the workdir "
            "of a run or the folder of a sweep"
        )
    page = LivePage(FolderView(folder, clips), seconds)
    title = sanitize.for_display(folder.absolute().name)
    try:
        return WatchServer(page, port, title=title, folder=sanitize.for_display(str(folder)))
    except UserError:
        page.close()
        raise


def serve(server: WatchServer) -> None:
    """Serves the page until Ctrl-C."""
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        server.page.close()
