"""Decisions shared by all processes: if one process raises, all processes raise the same error.

Each process writes its report to the key-value store of jax.distributed. Process 0 waits for all
reports and publishes the result in the same store. No devices are used. Every wait has a timeout,
and its error lists the number and host of each missing process.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import jax

from invnext_jax.errors import UserError, summarize_error
from invnext_jax.multihost import distributed, host_check

WAIT_SECONDS = 1200.0  # long enough for a slow disk
_KEY_PREFIX = "invnext_jax/consensus/"
_POLL_SECONDS = 0.05  # interval at which process 0 polls for reports
_GET_SECONDS = 1  # timeout of a blocking read; Python cannot handle signals during one
_exchange_ids = itertools.count()  # all processes create the same exchanges in the same order
_finished: list["HostExchange"] = []  # in process 0, exchanges whose keys can be deleted


class HostExchange:
    """Collects one report from each process and publishes one result to all of them.

    Exchanges are numbered, so all processes must create the same exchanges in the same order.

    Args:
      label: the name of the synchronization point, for error messages.
    """

    def __init__(self, label: str):
        self._label, self._id = label, next(_exchange_ids)
        self._reported = self._result = None

    def report(self, value: Any) -> None:
        """Reports a JSON-compatible value for this process. Later calls have no effect."""
        if self._reported is None:
            self._reported = json.dumps(value)
            distributed.key_value_client().key_value_set(
                self._key(f"report/{jax.process_index()}"), self._reported
            )

    def gather(self, timeout_seconds: float = WAIT_SECONDS) -> dict[int, Any]:
        """Waits for the reports of all processes (process 0 only).

        Returns:
          A dict that maps process numbers to reported values.

        Raises:
          TimeoutError: some processes did not report in time. The message lists them.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            entries = distributed.key_value_client().key_value_dir_get(self._key("report/"))
            reports = {int(key.rpartition("/")[2]): json.loads(text) for key, text in entries}
            missing = set(range(jax.process_count())) - set(reports)
            if not missing:
                return reports
            if time.monotonic() > deadline:
                raise TimeoutError(self._describe_missing(missing, timeout_seconds))
            time.sleep(_POLL_SECONDS)

    def publish(self, result: Any) -> None:
        """Publishes a JSON-compatible result (process 0 only). Later calls have no effect."""
        if self._result is None:
            self._result = json.dumps(result)
            distributed.key_value_client().key_value_set(self._key("result"), self._result)

    def result(self, timeout_seconds: float = WAIT_SECONDS) -> Any:
        """Waits until process 0 publishes the result, and returns it.

        Raises:
          UserError: process 0 published nothing within the timeout.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._result is None:
            try:
                key, milliseconds = self._key("result"), 1000 * _GET_SECONDS
                self._result = distributed.key_value_client().blocking_key_value_get(
                    key, milliseconds
                )
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise UserError(self._describe_missing({0}, timeout_seconds)) from error
        if jax.process_index() == 0:
            _finished.append(self)
        return json.loads(self._result)

    def cleanup(self) -> None:
        """Deletes the keys (process 0 only). Call it after all processes have read the result."""
        distributed.key_value_client().key_value_delete(self._key(""))

    def _key(self, name: str) -> str:
        return f"{_KEY_PREFIX}{self._id}/{name}"

    def _describe_missing(self, missing: set[int], seconds: float) -> str:
        return host_check.describe_missing_hosts(
            missing, distributed.host_names(), seconds, self._label
        )


class Broadcast:
    """A JSON `value` that process 0 sets in an `all_hosts_agree` block, for all processes."""

    value: Any = None


@contextlib.contextmanager
def all_hosts_agree(
    label: str,
    error_types: tuple[type[Exception], ...] = (UserError,),
    timeout_seconds: float = WAIT_SECONDS,
) -> Iterator[Broadcast]:
    """Waits for all processes at the end of the block. If one raised an error, all raise it.

    The block itself must not wait for other processes.

    Args:
      label: the name of the synchronization point, for error messages.
      error_types: error types that all processes raise unchanged, the most severe first. Any
          other error becomes a `UserError` and counts as the most severe.
      timeout_seconds: the longest time to wait.

    Yields:
      A `Broadcast` whose value process 0 may set.

    Raises:
      UserError: a process raised an error, or did not arrive in time.
    """
    broadcast, own_error = Broadcast(), None
    if jax.process_count() == 1:
        yield broadcast
        return
    try:
        yield broadcast
    except Exception as error:
        own_error = error
    exchange = HostExchange(label)
    exchange.report(_describe_error(own_error, error_types))
    if jax.process_index() == 0:
        try:
            reports = exchange.gather(timeout_seconds)
            errors = [[process, *report] for process, report in reports.items() if report]
        except TimeoutError as error:
            errors = [[None, -1, str(error)]]
        errors.sort(key=lambda row: row[1])
        exchange.publish({"value": broadcast.value, "errors": errors})
        if not errors:  # a process reports only after it has read the earlier results
            for earlier in _finished:
                earlier.cleanup()
            _finished.clear()
    result = exchange.result(2 * timeout_seconds)
    broadcast.value = result["value"]
    if not result["errors"]:
        return
    process, severity, text = result["errors"][0]
    if own_error is not None and _describe_error(own_error, error_types)[0] == severity:
        raise own_error
    source = "" if process is None else f"{distributed.describe_process(process)}: "
    kind = UserError if severity < 0 else error_types[severity]
    lines = (source + text).split("\n  ") if issubclass(kind, UserError) else [source + text]
    raise kind(*lines) from own_error


def _describe_error(
    error: Exception | None, error_types: tuple[type[Exception], ...]
) -> list | None:
    """Returns [index in `error_types` or -1, text] for an error; None if there is no error."""
    if error is None:
        return None
    for severity, error_type in enumerate(error_types):
        if isinstance(error, error_type):
            return [severity, str(error)]
    return [-1, f"it ended with {summarize_error(error)}"]
