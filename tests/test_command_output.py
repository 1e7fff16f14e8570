import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from invnext_jax.command_output import ResilientStream

ROOT = Path(__file__).parents[1]

PRINTING = """
import os, pathlib, sys
from invnext_jax import errors

def main(argv):
    for number in range(5000):
        print(f"line {number}" + 100 * ".", flush=True)
        print(f"error {number}", file=sys.stderr)
    pathlib.Path(os.environ["DONE"]).write_text("done")

errors.run_command(main)
"""


@pytest.mark.parametrize("streams", ["stdout", "both", "closed"])
def test_a_command_ends_well_after_its_output_was_closed(tmp_path, streams):
    done = tmp_path / "done"
    redirect = {"stdout": "2>/dev/null |", "both": "2>&1 |", "closed": ">&- 2>&- |"}[streams]
    command = f'"$PYTHON" -c "$SCRIPT" {redirect} head -n 2; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ["bash", "-c", command],
        env={
            **os.environ,
            **{"PYTHON": sys.executable, "SCRIPT": PRINTING, "DONE": str(done)},
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert done.read_text() == "done"
    assert (b"line 0" in ended.stdout) == (streams != "closed")


def test_warnings_are_logged_once():
    script = "import logging; logging.warning('early')\nfrom absl import logging\n"
    script += "from invnext_jax import errors\nerrors.run_command(lambda _: logging.warning('a'))"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line.split()[-1] for line in ended.stderr.splitlines()] == ["WARNING:root:early", "a"]


class FullDisk(io.StringIO):
    full = True

    def write(self, text):
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_text_is_written_again_after_a_full_disk_has_room():
    file = FullDisk()
    stream = ResilientStream(file)
    print("lost", file=stream, flush=True)
    file.full = False
    print("kept", file=stream, flush=True)
    assert file.getvalue() == "kept\n"
    assert not stream.isatty()
