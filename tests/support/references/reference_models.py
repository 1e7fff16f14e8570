"""Models of transformers with random weights that need not be stored.

The weights depend only on their names and shapes, so that files of the same weights are written
with and without transformers.
"""

import dataclasses
import json
import re
import tempfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

TABLES = ("position", "token", "class_embed", "probe")


def draw(shape, *seed):
    """Draws normal numbers in float32. `RandomState` draws the same ones in all NumPy versions."""
    return np.random.RandomState(seed or (0,)).standard_normal(shape).astype(np.float32)


def draw_weights(shapes):
    """Draws all parameters, including norms and biases, so that a missing one is detected."""
    weights = {}
    for name, shape in shapes.items():
        matrix = len(shape) > 1 and not any(part in name for part in TABLES)
        deviation = np.prod(shape[1:]) ** -0.5 if matrix else 0.5
        weights[name] = draw(shape, zlib.crc32(name.encode())) * np.float32(deviation)
    return weights


def fold_names(shapes):
    """Joins the layers of a model: `layers.{0..11}.weight` are the names of 12 tensors."""
    groups = {}
    for name, shape in shapes.items():
        pattern, _, number = re.sub(r"\.(\d+)\.(.*)", r".*.\2\n\1", name, count=1).partition("\n")
        groups.setdefault((pattern, tuple(shape)), []).append(int(number or -1))
    folded = {}
    for (pattern, shape), numbers in groups.items():
        first, last = min(numbers), max(numbers)
        if sorted(numbers) == [*range(first, last + 1)] and first < last:
            folded[pattern.replace("*", f"{{{first}..{last}}}")] = list(shape)
        else:
            folded |= {pattern.replace("*", str(number)): list(shape) for number in numbers}
    assert unfold_names(folded) == {name: tuple(shape) for name, shape in shapes.items()}
    return folded


def unfold_names(folded):
    """Inverts `fold_names`. The result is sorted by name."""
    shapes = {}
    for pattern, shape in folded.items():
        before, first, last, after = re.fullmatch(
            r"(.*?)(?:\{(\d+)\.\.(\d+)\}(.*))?", pattern
        ).groups()
        numbers = [""] if first is None else range(int(first), int(last) + 1)
        shapes |= {f"{before}{number}{after or ''}": tuple(shape) for number in numbers}
    return dict(sorted(shapes.items()))


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of transformers: the name of its class and the options of its config.

    Weights whose names contain a part of `small` are multiplied by `factor`.
    """

    name: str
    options: dict = dataclasses.field(default_factory=dict)
    small: tuple = ()
    factor: float = 1.0

    @property
    def key(self):
        return f"{self.name} {json.dumps(self.options, sort_keys=True)}"

    def make_config(self, hf):
        return getattr(hf.models, self.name).config_class(**self.options)

    def describe(self, hf):
        """Returns the config, and the shapes of the tensors by their name in a file."""
        with tempfile.TemporaryDirectory() as folder:
            getattr(hf.models, self.name)(self.make_config(hf)).save_pretrained(folder)
            config = json.loads((Path(folder) / "config.json").read_text())
            with safe_open(Path(folder) / "model.safetensors", "np") as tensors:
                shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
        return {"config": config, "tensors": fold_names(shapes)}

    def describe_modules(self, hf):
        """Returns the config, and the shapes of the tensors by their name in the modules.

        No weights are made, so that a model can be large.
        """
        config = self.make_config(hf)
        with hf.torch.device("meta"):
            state = getattr(hf.models, self.name)(config).state_dict()
        shapes = {name: tuple(x.shape) for name, x in state.items()}
        return {"config": config.to_dict(), "tensors": fold_names(shapes)}

    def draw(self, shapes):
        """Draws the weights."""
        weights = draw_weights(shapes)
        for name in weights:
            if any(part in name for part in self.small):
                weights[name] *= np.float32(self.factor)
        return weights

    def load(self, hf, folder, attention="eager"):
        """Loads the model of transformers from a folder, in float32."""
        model, info = getattr(hf.models, self.name).from_pretrained(
            folder,
            config=self.make_config(hf),
            attn_implementation=attention,
            dtype=hf.torch.float32,
            output_loading_info=True,
        )
        assert not any(info.values()), info  # missing and unexpected names
        return model.eval()


def write_folder(folder, config, tensors, shard_bytes=None):
    """Writes config.json and the tensors as transformers does, in one file or in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config))
    if shard_bytes is None:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    shards, room = [], 0
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def module_shapes(module):
    """Returns the shapes of the tensors of a torch module, for `filled`."""
    return fold_names({name: tuple(x.shape) for name, x in module.state_dict().items()})


def filled(hf, module, weights):
    """Returns a torch module with the given weights."""
    module.load_state_dict({name: hf.torch.from_numpy(x) for name, x in weights.items()})
    return module.eval()
