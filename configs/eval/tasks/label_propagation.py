"""Training-free propagation of the masks and points of the first frame of each video.

    python launch/evaluate.py --config=configs/eval/tasks/label_propagation.py:tiny \
        --checkpoint=runs/s2 --workdir=runs/e2

davis_propagation.py and jhmdb_propagation.py are based on the base variant.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base."""
    config = linear_probe.get_config(variant)
    config.evaluators = ("label_propagation",)
    config.label_propagation = ml_collections.ConfigDict(
        {
            # "world": masks and points of the synthetic world in `val_manifest`; "davis": masks;
            # "jhmdb": joints. Only the world needs manifests.
            "data": "world",
            "root": "",  # Folder of DAVIS or JHMDB.
            "context": 20,  # Previous frames in the context, besides the first frame.
            "temperature": 0.7,  # A token votes with exp(cosine similarity / temperature).
            "neighbors": 7,  # Tokens of the context whose labels are averaged.
            "radius": 20.0,  # Maximum distance of tokens in previous frames, in tokens.
            "layer": -1,  # Layer whose tokens are used, from 0. -1: the final tokens.
            # Size in pixels to which whole frames are resized, rounded down to whole patches. 0:
            # their own size, which is `data.size` for the world. Usual: 480 x 880 for DAVIS,
            # 320 x 320 for JHMDB.
            "height": 480,
            "width": 880,
        }
    )
    if variant == "tiny":
        # Objects of the world have about 11 pixels. At the original size, a token of 8 x 8 pixels
        # cannot represent their outline: perfect tokens would have a J&F of 0.22 instead of 0.72.
        config.label_propagation.update(height=64, width=64)
    return config
