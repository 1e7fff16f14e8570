"""What several processes decide together: what one of them refuses, all refuse.

Each process says its part in the key-value store of jax.distributed; process 0 waits for all parts
and writes the result there. No device takes part, every wait has an end, and whoever does not come
is named by number and host.
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

WAIT_SECONDS = 1200.0  # a slow disk may take so long
_FOLDER = "invnext_jax/together/"
_LOOK_SECONDS = 0.05  # how often process 0 looks for the parts of the others
_SIGNAL_SECONDS = 1  # Python handles no signal while it waits in the store
_numbers = itertools.count()  # all processes come to the same rounds in the same order
_read: list["HostExchange"] = []  # in process 0: rounds whose results it has read


class HostExchange:
    """One question that every process answers; made by all processes, in the same order.

    Args:
        where: what the processes come to, for the message.
    """

    def __init__(self, where: str):
        self._where, self._number = where, next(_numbers)
        self._said = self._result = None

    def say(self, part: Any) -> None:
        """Gives this process's part (JSON); only the first one counts."""
        if self._said is None:
            self._said = json.dumps(part)
            distributed.key_value_client().key_value_set(
                self._key(f"said/{jax.process_index()}"), self._said
            )

    def collect(self, timeout_seconds: float = WAIT_SECONDS) -> dict[int, Any]:
        """In process 0: waits for the parts of all processes.

        Raises:
            TimeoutError: somebody did not come; it says who.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = distributed.key_value_client().key_value_dir_get(self._key("said/"))
            parts = {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}
            absent = set(range(jax.process_count())) - set(parts)
            if not absent:
                return parts
            if time.monotonic() > deadline:
                raise TimeoutError(self._describe_absent(absent, timeout_seconds))
            time.sleep(_LOOK_SECONDS)

    def conclude(self, result: Any) -> None:
        """In process 0: gives the result (JSON) to all; only the first one counts."""
        if self._result is None:
            self._result = json.dumps(result)
            distributed.key_value_client().key_value_set(self._key("result"), self._result)

    def result(self, timeout_seconds: float = WAIT_SECONDS) -> Any:
        """Waits until process 0 has concluded.

        Raises:
            UserError: it does not within the time.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._result is None:
            try:
                key, milliseconds = self._key("result"), 1000 * _SIGNAL_SECONDS
                self._result = distributed.key_value_client().blocking_key_value_get(
                    key, milliseconds
                )
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise UserError(self._describe_absent({0}, timeout_seconds)) from error
        if jax.process_index() == 0:
            _read.append(self)
        return json.loads(self._result)

    def forget(self) -> None:
        """In process 0, once all have read the result: removes what was said."""
        distributed.key_value_client().key_value_delete(self._key(""))

    def _key(self, name: str) -> str:
        return f"{_FOLDER}{self._number}/{name}"

    def _describe_absent(self, absent: set[int], seconds: float) -> str:
        return host_check.describe_missing_hosts(
            absent, distributed.host_names(), seconds, self._where
        )


class Broadcast:
    """A JSON `value` that process 0 sets inside `all_hosts_agree`; all processes read it after."""

    value: Any = None


@contextlib.contextmanager
def all_hosts_agree(
    where: str,
    kinds: tuple[type[Exception], ...] = (UserError,),
    timeout_seconds: float = WAIT_SECONDS,
) -> Iterator[Broadcast]:
    """Waits at its end for all processes; what one raises within it, all raise there.

    Between its start and the error there must be nothing that waits for other processes.

    Args:
        where: what the processes come to, for the message.
        kinds: what is raised again on the others as what it is, the gravest first; of anything
            else they make a `UserError`, graver than all.
        timeout_seconds: longest time to wait.

    Yields:
        What process 0 may tell the others.

    Raises:
        UserError: somebody raised it, or did not come.
    """
    told, mine = Broadcast(), None
    if jax.process_count() == 1:
        yield told
        return
    try:
        yield told
    except Exception as error:
        mine = error
    asked = HostExchange(where)
    asked.say(_describe(mine, kinds))
    if jax.process_index() == 0:
        try:
            parts = asked.collect(timeout_seconds)
            refusals = [[number, *part] for number, part in parts.items() if part]
        except TimeoutError as error:
            refusals = [[None, -1, str(error)]]
        asked.conclude({"value": told.value, "refusals": sorted(refusals, key=lambda row: row[1])})
        if not refusals:  # all are here, so all have read whatever came before
            for before in _read:
                before.forget()
            _read.clear()
    result = asked.result(2 * timeout_seconds)
    told.value = result["value"]
    if not result["refusals"]:
        return
    number, grade, text = result["refusals"][0]
    if mine is not None and _describe(mine, kinds)[0] == grade:
        raise mine
    said_by = "" if number is None else f"{distributed.describe_process(number)}: "
    raise (UserError if grade < 0 else kinds[grade])(said_by + text) from mine


def _describe(error: Exception | None, kinds: tuple[type[Exception], ...]) -> list | None:
    """Place in `kinds`, -1 for none of them, and text; None if there is no error."""
    if error is None:
        return None
    for grade, kind in enumerate(kinds):
        if isinstance(error, kind):
            return [grade, str(error)]
    return [-1, f"it ended with {summarize_error(error)}"]
