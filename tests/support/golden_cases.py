"""Reader of golden cases: outputs of the reference implementation in float32 on a CPU.

The kind of a case is the part of its name before the first underscore. Its sizes are read from the
manifest, so that cases of other sizes need no other code.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import load_file

DEFAULT = Path(__file__).parents[1] / "fixtures" / "golden"


class Case:
    """One case: sizes, inputs, expected outputs, and parameters by their name in the reference."""

    def __init__(self, folder, name, entry):
        self.name = name
        self.config = entry["config"]
        self.tensors = load_file(folder / entry["file"])

    def __getitem__(self, key):
        return self.tensors[key]

    def under(self, prefix):
        """Returns all tensors whose names start with a prefix, without the prefix."""
        n = len(prefix)
        return {k[n:]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def video(self):
        """The input clip, [b t h w c]."""
        return np.moveaxis(self["in.video"], 1, -1)

    def config_of_run(self, frames=None):
        """Returns a run's config with the sizes of this case."""
        model = SimpleNamespace(**self.config["model"])
        bert = SimpleNamespace(**self.config.get("bert", {}))
        encoder = SimpleNamespace(
            width=model.embed_dim,
            depth=model.depth,
            heads=model.num_heads,
            mlp_width=int(model.embed_dim * getattr(model, "mlp_ratio", 4)),
            patch=model.patch_size,
            size=model.img_size,
            frames=model.num_frames,
            class_tokens=getattr(model, "cls_token_num", 4),
            layer_scale=1e-5,
            drop_path=0.0,
            pool_heads=model.attn_pool_num_heads,
            pool_width=model.clip_embed_dim,
        )
        layers = self.under("param.bert_decoder.layers.")
        predictor = SimpleNamespace(
            kind="modernbert",
            weights="",
            width=bert.hidden_size,
            depth=max((int(k.split(".")[0]) + 1 for k in layers), default=0),
            heads=bert.num_attention_heads,
            mlp_width=bert.intermediate_size,
            window=bert.local_attention,
            last_layer=max((int(k) for k in self.under("out.layer")), default=27),
        )
        decoder = SimpleNamespace(
            kind="diffusion",
            depth=getattr(model, "diffloss_d", 0),
            width=getattr(model, "diffloss_w", 0),
            noise_draws=getattr(model, "diffusion_batch_mul", 1),
            dtype="float32",
            chunks=1,
        )
        teacher = SimpleNamespace(width=model.clip_teacher_embed_dim, taps=model.clip_return_layer)
        data = SimpleNamespace(frames=frames or model.num_frames, size=model.img_size)
        ratios = self.config.get("clip_loss_ratio", (1, 1, 1))
        loss = dict(zip(("align_tokens", "align_pooled", "pixels"), ratios, strict=True))
        return SimpleNamespace(
            encoder=encoder,
            predictor=predictor,
            decoder=decoder,
            teacher=teacher,
            target=SimpleNamespace(kind="frozen", drop_path=False),
            data=data,
            loss=loss,
            dtype="float32",
            init_gain=1.0,
            quantize_frozen="",
            remat="none",
        )


def read_cases(folder):
    """Returns all cases of a folder by name."""
    folder = Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: Case(folder, name, entry) for name, entry in manifest["cases"].items()}


def mask_indices(mask_bn):
    """Converts boolean masks (True: masked) to (keep_bk, masked_bm)."""
    order = np.argsort(mask_bn, axis=1, kind="stable").astype(np.int32)
    kept = int((~mask_bn[0]).sum())
    return order[:, :kept], order[:, kept:]


def assert_near(actual, expected, relative=1e-4):
    """Asserts that errors are at most a share `relative` of the largest expected value."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())
