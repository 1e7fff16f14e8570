"""Random texts, numbers and JSON values, and a time limit for the functions that read them."""

import json
import time

from hypothesis import strategies as st

from invnext_jax.errors import UserError

SECONDS = 20  # maximum time for one file on a busy machine
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 10**9, 1e308])
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "\x00", "\ud800", "../x", "\x1b[2J", "a/b", "1"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def read_or_refuse(function, *arguments):
    """Returns the result, or None after a `UserError`; all other errors fail the test."""
    start = time.monotonic()
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error)
        return None
    finally:
        assert time.monotonic() - start < SECONDS


def dump(value):
    """Returns a value as bytes of JSON."""
    return json.dumps(value).encode()
