"""A disk cache of extracted features, so that each encoder runs only once on each manifest.

The features of one encoder and one split are stored in one .npz file without pickled objects. The
file also contains their key, a hash of the encoder's config and parameters, the contents of the
manifest and of its videos, and the options for selecting and resizing frames.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from invnext_jax import atomic_file
from invnext_jax.evaluation.features import VideoFeatures
from invnext_jax.json_file import hash_json

LABEL = "label_"
# Options of `config.data` that affect neither the selection of videos nor their pixels. The
# manifest is among them because the key contains a hash of its contents instead of its path.
_NOT_IN_KEY = ("root", "manifest", "workers", "prefetch", "protocols", "other_hosts")


class FeatureCache:
    """A folder with cached features.

    Attributes:
      folder: path of the folder, which has one file for each encoder name and split.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(
        self,
        name: str,
        key: str,
        compute: Callable[[], VideoFeatures],
        is_complete: Callable[[], bool] = lambda: True,
    ) -> VideoFeatures:
        """Returns the stored features if their key matches; otherwise computes and stores them.

        Args:
          name: name of the file, for example "encoder-train". Features with a different key are
            replaced.
          key: see `feature_key`.
          compute: function that extracts the features.
          is_complete: function that returns whether to store the computed features. It returns
            False if missing videos may become readable later.
        """
        path = self.folder / f"{name}.npz"
        found = _read(path, key)
        if found is None:
            found = compute()
            if is_complete():
                _write(path, key, found)
        return found


def feature_key(
    encoder_key: str, manifest_digest: str, video_digest: str, data: dict[str, Any]
) -> str:
    """Returns the key for the features of an encoder on a manifest.

    Args:
      encoder_key: hash of the encoder's config and parameters.
      manifest_digest: hash of the manifest's contents.
      video_digest: hash of the contents of its videos.
      data: `config.data` with resolved sizes, as JSON.
    """
    clips = {name: value for name, value in data.items() if name not in _NOT_IN_KEY}
    return hash_json([encoder_key, manifest_digest, video_digest, clips])


def _read(path: Path, key: str) -> VideoFeatures | None:
    if not path.is_file():
        return None
    try:
        # The file is opened here, because `np.load` does not close damaged archives.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if str(archive["key"]) != key:
                return None
            arrays = {name: archive[name] for name in archive.files if name != "key"}
        labels = {
            name.removeprefix(LABEL): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(LABEL)
        }
        return VideoFeatures(labels=labels, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({error}). Its features are extracted again.", flush=True)
        return None


def _write(path: Path, key: str, features: VideoFeatures) -> None:
    arrays = {name: value for name, value in vars(features).items() if name != "labels"}
    arrays |= {LABEL + task: label_b for task, label_b in features.labels.items()}
    atomic_file.remove_temporary_files(path)  # these may be large
    with atomic_file.atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, key=np.array(key), **arrays)
