import errno
import logging
import os
import sys
import types

import orbax.checkpoint as ocp
import pytest

from invnext_jax.checkpointing import save_errors


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            ValueError(
                'OUT_OF_RANGE: Error writing "a.b/0" in OCDBT database at local file "/w/4/p/": '
                'Failed writing: "/w/4/p/d/81c8": Failed to write 1929949 bytes to file 7: '
                f"Disk quota exceeded [os_error_code='{errno.EDQUOT}']"
            ),
            f"{os.strerror(errno.EDQUOT)}: /w/4/p/d/81c8",
        ),
        (PermissionError(13, "Permission denied", "/w/2"), "Permission denied: /w/2"),
        (OSError("no memory on this host"), "OSError: no memory on this host"),
        (ValueError("another\nline"), "ValueError: another"),
    ],
)
def test_cause_is_the_message_of_the_system_and_the_file(error, cause):
    assert save_errors.describe_cause(error) == cause


def test_tracebacks_of_orbax_and_tensorstore_are_suppressed(caplog, monkeypatch):
    logger, unraisable = logging.getLogger("absl"), []
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(str(args.exc_value)))
    save_errors.suppress_tracebacks.__wrapped__()

    def log_traceback(path):
        try:
            raise OSError("a cause")
        except OSError:
            record = logger.makeRecord("absl", 40, path, 1, "failed", (), sys.exc_info())
            logger.handle(record)

    def print_unraisable(text):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))

    log_traceback(ocp.__file__)
    print_unraisable("Event loop is closed")
    assert not caplog.records and not unraisable
    log_traceback(__file__)
    print_unraisable("another")
    assert len(caplog.records) == 1 and unraisable == ["another"]
    try:
        ocp.StandardCheckpointHandler().metadata(None)
    except Exception:
        logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=True)
        logger.handle(logger.makeRecord("absl", 40, __file__, 1, "failed", (), sys.exc_info()))
    assert len(caplog.records) == 1


def test_late_writes_of_a_failed_save_are_suppressed(caplog, monkeypatch):
    logger = logging.getLogger("asyncio")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    save_errors.suppress_tracebacks.__wrapped__()
    message = "Future exception was never retrieved"
    late = ValueError('NOT_FOUND: Error writing "a/0" at "/w/6.orbax-checkpoint-tmp/state/"')
    logger.error(message, exc_info=late)
    assert not caplog.records
    logger.error(message, exc_info=ValueError("another"))
    assert len(caplog.records) == 1
