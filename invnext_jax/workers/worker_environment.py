"""Environment variables of worker processes, selected by an allowlist that contains no secrets.

Workers decode untrusted videos. Credentials are passed only for the protocols of the videos that
the workers read.
"""

import os
import sys
from collections.abc import Collection, Mapping

EXTRA_VARIABLE = "INVNEXT_WORKER_VARIABLES"  # names of additional variables, separated by commas
_NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("GLIBC_TUNABLES", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
}
_PREFIXES = ("LC_", "LD_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "MALLOC_")
# Proxies and certificate authorities, for all remote files.
_REMOTE_NAMES = {
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
}
_GOOGLE = ("GOOGLE_", "GCE_", "GCSFS_", "FSSPEC_GCS", "CLOUDSDK_", "STORAGE_EMULATOR_HOST")
_AMAZON = ("AWS_", "BOTO_", "FSSPEC_S3")
_PREFIXES_OF_PROTOCOL = {"gs": _GOOGLE, "gcs": _GOOGLE, "s3": _AMAZON, "s3a": _AMAZON}
# Hides accelerators from the libraries that a worker imports, and limits them to one thread.
_FIXED = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Prevents glibc from returning the memory of each clip to the system and allocating it again.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}


def make_environment(
    protocols: Collection[str] = (), environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Returns the environment variables of a worker process.

    Args:
      protocols: Protocols of the remote files that the worker reads, for example "s3".
      environment: Variables of this process.
    """
    names = {*_NAMES, *environment.get(EXTRA_VARIABLE, "").split(",")}
    prefixes = _PREFIXES
    if protocols:
        names |= _REMOTE_NAMES
    for protocol in protocols:
        prefixes += _PREFIXES_OF_PROTOCOL.get(protocol, ())
    allowed = {
        name: value
        for name, value in environment.items()
        if name in names or name.startswith(prefixes)
    }
    return {**_ALLOCATION, **allowed, **_FIXED, "PYTHONPATH": python_path()}


def python_path() -> str:
    """Returns the PYTHONPATH with which `python -P` imports the modules of this process."""
    return os.pathsep.join(folder or os.getcwd() for folder in sys.path)
