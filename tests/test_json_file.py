"""Defects of JSON files lead to one-sentence errors."""

import os

import pytest

from invnext_jax import json_file
from invnext_jax.errors import UserError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is damaged"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
        (b'{"a": "\xff"}', "is damaged"),
        (b"[]", "does not contain a JSON object"),
        (b" " * 1000, "Larger than 999 bytes"),
    ],
)
def test_defects_are_one_sentence(data, message, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    limit = 999 if len(data) == 1000 else json_file.MAX_BYTES
    with pytest.raises(UserError, match=message) as caught:
        json_file.read_object(tmp_path / "a.json", "copy it again", limit)
    assert str(caught.value).endswith(": copy it again")


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        json_file.read_object(tmp_path / "a.json")


def test_pipes_and_devices_are_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(UserError, match=r"cannot be read \(Not a regular file\)"):
            json_file.read_object(tmp_path / name)
