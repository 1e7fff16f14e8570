"""Rules for which files a manifest's rows may refer to.

Manifests may come from untrusted sources. Some fsspec protocols run code or open other files, and a
manifest from a server could refer to files on this machine or to addresses inside its network.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from invnext_jax.data import files as files_lib
from invnext_jax.data import video_io
from invnext_jax.errors import UserError

PROTOCOLS = ("file", "gs", "gcs", "s3", "https")
# The user, the host and the port of a web address; RFC 3986, section 3.2, with a name or a number.
_AUTHORITY = re.compile(
    r"(?:[\w.~!$&'()*+,=:%-]*@)?(?P<host>(?:[\w.-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?)(?=[/?]|$)",
    re.ASCII | re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class AccessRules:
    """Which files the rows of a manifest may refer to.

    Attributes:
      protocols: Allowed protocols in addition to `PROTOCOLS`.
      other_hosts: Whether a remote manifest may refer to files on other hosts, in other buckets
          or under other protocols, and to files on this machine.
    """

    protocols: Sequence[str] = ()
    other_hosts: bool = False

    @classmethod
    def from_config(cls, data_config: Any) -> "AccessRules":
        """Returns the rules that `config.data` specifies."""
        return cls(tuple(data_config.protocols), data_config.other_hosts)

    def check_manifest(self, manifest: str) -> None:
        """Raises `UserError` if the protocol of a manifest is not allowed."""
        if video_io.is_remote(manifest):
            self._check_protocol(manifest, manifest)

    def check_row(self, video: str, manifest: str, line: str) -> None:
        """Checks the path of a row after it is joined with the manifest's folder.

        Args:
          video: Path or address of the video.
          manifest: Path or address of the manifest.
          line: Manifest name and line number, for the error message.

        Raises:
          UserError: The rules do not allow the video, the path has a NUL character or is too
              long, or the host of an address of a remote manifest is not valid.
        """
        video_io.check_length(video, line)
        if "\0" in video:
            raise UserError(f"{line}: no file can have the path {video!a}: correct it")
        if video_io.is_remote(video):
            self._check_protocol(video, line)
        origin = _origin(manifest, line)
        if origin and _origin(video, line) != origin and not self.other_hosts:
            raise UserError(
                f"{line}: a manifest on {origin} may not refer to {video}: set "
                "config.data.other_hosts=True (prepare_data.py: --other_hosts) if you trust the "
                "manifest"
            )

    def _check_protocol(self, name: str, where: str) -> None:
        files_lib.refuse_chain(name)
        protocol = files_lib.protocol_of(name)
        if protocol not in (*PROTOCOLS, *self.protocols):
            raise UserError(
                f"{where}: the protocol {protocol}:// is not one of {', '.join(PROTOCOLS)}: add it "
                f"to config.data.protocols (prepare_data.py: --protocols={protocol}) if you trust "
                "the list"
            )


DEFAULT_RULES = AccessRules()


def check_config(data_config: Any) -> None:
    """Checks `config.data.protocols` and `config.data.other_hosts`.

    Raises:
      UserError: A value has the wrong type.
    """
    names = data_config.protocols
    if isinstance(names, str) or not all(isinstance(n, str) and n.isascii() for n in names):
        raise UserError(
            f"config.data.protocols={names!r} must be a tuple of names, such as ('http',)"
        )
    if not isinstance(data_config.other_hosts, bool):
        raise UserError(f"config.data.other_hosts={data_config.other_hosts!r} must be a boolean")


def _origin(name: str, where: str) -> str:
    """Returns the protocol and the host or bucket of an address; "" for a path.

    The user name in a web address is removed.

    Raises:
      UserError: It is unclear to which host a web address refers.
    """
    if not video_io.is_remote(name) or files_lib.protocol_of(name) == "file":
        return ""
    protocol, _, rest = name.partition("://")
    if protocol not in files_lib.WEB_PROTOCOLS:
        return f"{protocol}://{rest.partition('/')[0]}"
    # Clients disagree about where the host ends in addresses such as https://a#@b/ or https://a\@b/.
    authority = _AUTHORITY.match(rest)
    if authority is None:
        raise UserError(
            f"{where}: the host of the address {name} is not valid: write it as "
            f"{protocol}://host/path"
        )
    return f"{protocol}://{authority['host'].lower()}"
