"""Limit of the time in which a JPEG image is decoded."""

MAX_SCANS = 100  # of a progressive image, which usually has 10
_START, _SCAN = b"\xff\xd8", b"\xff\xda"


def check_scans(data: bytes) -> None:
    """Checks the number of scans of an image. A scan of few bytes may take as long as a full one.

    Args:
      data: content of a file of any format.

    Raises:
      ValueError: it is a JPEG image with more than `MAX_SCANS`.
    """
    scans = data.count(_SCAN) if data.startswith(_START) else 0
    if scans > MAX_SCANS:
        raise ValueError(f"it has {scans} scans, more than {MAX_SCANS}")
