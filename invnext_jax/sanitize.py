"""Removes terminal escapes and URL secrets from untrusted text, and limits its length."""

import re
from typing import Any

# Control characters except tab and newline, and characters that change the text direction.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_ENDS = re.compile("[\n\u2028\u2029]")  # those of `str.splitlines` that are no controls
_URL = re.compile(
    r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]{0,40})://"  # the limit makes the search linear
    r"(?P<user>[^\s/?#'\"<>]*@)?"
    r"(?P<path>[^\s?'\"<>]*)"
    r"(?P<query>\?(?:(?!,[A-Za-z][A-Za-z0-9+.-]*:)[^\s'\"<>])*)?"
)
_SECRET_NAME = re.compile(
    "sig|token|key|secret|pass|pwd|auth|cred|policy|session|access|code|jwt|hmac|hash", re.I
)
_MAX_PLAIN = 15  # longer query values may be signatures
_REDACTED = "REDACTED"
MAX_MESSAGE = 20_000  # maximum number of characters of an error message; it may contain a table
MAX_LOG_ENTRY = 200_000  # maximum number of characters of an entry of the log
MAX_REASON = 1000  # maximum number of characters of the reason why a video or a row is skipped


def redact_urls(text: str) -> str:
    """Replaces user names, passwords and query secrets in all URLs in a text.

    A query value is considered secret if its name suggests so, as in `?token=...`, or if it is
    longer than 15 characters. Text without such URLs is unchanged.
    """
    return _URL.sub(_redact_url, text) if "://" in text else text


def redact_error(text: str, address: str) -> str:
    """Replaces the secrets in an error about a URL, even if the error omits the protocol."""
    protocol, separator, rest = address.partition("://")
    if separator:
        public = redact_urls(address).removeprefix(f"{protocol}://")
        text = text.replace(rest, public)
    return redact_urls(text)


def _redact_url(match: re.Match) -> str:
    protocol, query = match["protocol"], match["query"] or ""
    user = f"{_REDACTED}@" if match["user"] else ""
    if protocol != "file":  # file names may contain question marks
        query = re.sub(r"([?&;])([^?&;]*)", _redact_value, query)
    return f"{protocol}://{user}{match['path']}{query}"


def _redact_value(match: re.Match) -> str:
    name, equals, value = match[2].partition("=")
    if not equals:
        name, value = "", name
    if len(value) <= _MAX_PLAIN and not _SECRET_NAME.search(name):
        return match[0]
    return f"{match[1]}{name}{equals}{_REDACTED}"


def redact_tree(tree: Any) -> Any:
    """Returns a JSON-compatible tree with `redact_urls` applied to all of its strings."""
    if isinstance(tree, dict):
        return {name: redact_tree(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [redact_tree(value) for value in tree]
    return redact_urls(tree) if isinstance(tree, str) else tree


def escape_controls(text: str) -> str:
    r"""Replaces control characters, except tab and newline, with escapes such as `\x1b`."""
    return _CONTROLS.sub(_escape, text)


def escape_lines(text: str) -> str:
    r"""Replaces control characters, except tab, and ends of lines with escapes such as `\n`."""
    return _LINE_ENDS.sub(_escape, escape_controls(text))


def _escape(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode()


def is_line(text: str) -> bool:
    """Returns whether a text is one line without control characters, except tabs."""
    return text == escape_controls(text) and text == "".join(text.splitlines())


def for_display(text: str) -> str:
    """Returns a text without control characters and URL secrets, for display and logs."""
    return escape_controls(redact_urls(text))


def shorten(text: str, limit: int = MAX_REASON) -> str:
    """Returns a text of at most `limit` characters.

    The middle of a longer text is omitted, because the end of an error says what to change. URL
    secrets in it are replaced first, because a part of a URL is not recognized as one.
    """
    if len(text) <= limit:
        return text
    text, omitted = redact_urls(text), " [...] "
    if len(text) <= limit:
        return text
    end = (limit - len(omitted)) // 2
    return f"{text[: limit - len(omitted) - end]}{omitted}{text[-end:]}"
