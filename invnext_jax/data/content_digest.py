"""Hashes the content of video files, to recognize copies."""

import hashlib
import os

END_BYTES = 1 << 16  # number of bytes hashed at each end of a file


def digest_file(path: str | os.PathLike) -> str:
    """Returns a hash of the size, the beginning and the end of a local file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        digest.update(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()
