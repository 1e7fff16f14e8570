"""Secrets of URLs and terminal escapes are removed; other text is unchanged."""

import time

import pytest

from invnext_jax import sanitize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, a?b=c and x@y", None),
        ("/data/a?token=secret.mp4", None),
        ("world:simple/train?videos=2000", None),
        ("file:///a/b?token=1.mp4", None),
        ("gs://bucket/a.mp4", None),
        ("https://host/a.mp4?id=dQw4w9WgXcQ&t=3", None),
        ("https://me:pw@host/a.mp4", "https://REDACTED@host/a.mp4"),
        ("https://token@host:80/a", "https://REDACTED@host:80/a"),
        ("http://a:b@c@host/a", "http://REDACTED@host/a"),
        ("https://h/a?token=1&id=2", "https://h/a?token=REDACTED&id=2"),
        (
            "https://h/a?X-Amz-Date=1&X-Amz-Signature=f",
            "https://h/a?X-Amz-Date=1&X-Amz-Signature=REDACTED",
        ),
        ("https://h/a?x=0123456789abcdef", "https://h/a?x=REDACTED"),
        ("https://h/a?0123456789abcdef", "https://h/a?REDACTED"),
        ("https://h/a?sv=1;sig=ab%2Fc", "https://h/a?sv=1;sig=REDACTED"),
        (
            "https://h/a.csv?key=1,https://me@h/b.csv?key=2",
            "https://h/a.csv?key=REDACTED,https://REDACTED@h/b.csv?key=REDACTED",
        ),
        (
            "404, url='https://h/a?sig=abc' for 'https://h/b'",
            "404, url='https://h/a?sig=REDACTED' for 'https://h/b'",
        ),
    ],
)
def test_secrets_of_urls_are_replaced(text, expected):
    assert sanitize.redact_urls(text) == (expected or text)
    assert sanitize.redact_urls(expected or text) == (expected or text)


def test_secrets_of_long_texts_are_replaced_in_linear_time():
    begin = time.process_time()
    for text in ("a" * 200_000, "a:" * 100_000, "a://b?" + ",a" * 100_000):
        assert "password" not in sanitize.redact_urls(f"{text} {'x' * 50}://user:password@host/a")
    assert time.process_time() - begin < 5


def test_all_strings_of_a_tree_are_redacted():
    tree = {"a": ["s3://k:s@b/x", 1, None], "b": {"c": "https://h?pwd=1"}}
    expected = {"a": ["s3://REDACTED@b/x", 1, None], "b": {"c": "https://h?pwd=REDACTED"}}
    assert sanitize.redact_tree(tree) == expected


def test_control_characters_are_escaped():
    text = "a\tb\nc\x1b]0;owned\x07\r\x9b31m\u202e\udc80ü"
    expected = "a\tb\nc\\x1b]0;owned\\x07\\r\\x9b31m\\u202e\\udc80ü"
    assert sanitize.escape_controls(text) == expected
    assert sanitize.for_display("\x1bhttps://a@b") == "\\x1bhttps://REDACTED@b"


def test_long_texts_keep_their_start_and_their_end_without_secrets():
    text = f"list {'x' * 10**6}: https://h/{'y' * 100}?token=abcdef is bad: change the list"
    short = sanitize.shorten(text, 100)
    assert len(short) == 100 and short.startswith("list x")
    assert short.endswith("is bad: change the list") and "abcdef" not in short
    assert sanitize.shorten("a" * 100, 100) == "a" * 100
    assert len(sanitize.shorten("a" * 101, 100)) == 100


@pytest.mark.parametrize("text", ["", "a b", "ä\t漢", "a\xa0b"])
def test_lines_have_no_controls_and_no_line_breaks(text):
    assert sanitize.is_line(text)
    for control in ("\n", "\r", "\x0b", "\x1b", "\x85", "\u2028", "\u202e", "\ud800"):
        assert not sanitize.is_line(text + control)
