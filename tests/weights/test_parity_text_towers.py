"""Text towers that are read from files of transformers equal the original models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from parity import numpy_of
from reference_models import Model

from invnext_jax.errors import UserError
from invnext_jax.models.text_tower import TextTower
from invnext_jax.weights import import_weights
from invnext_jax.weights.files import open_checkpoint

TEXT = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 8,
}
END = 29


def make_tokens(end=END):
    """Returns captions of different lengths, with padding of zeros after the end token."""
    words_jn = np.random.RandomState(0).randint(1, 28, (5, 9)).astype(np.int32)
    for row, position in enumerate((8, 3, 5, 1, 8)):
        words_jn[row, position] = end
        words_jn[row, position + 1 :] = 0
    return words_jn


def encode(folder, words_jn):
    imported = import_weights.read_text_tower(open_checkpoint(folder), folder)
    tower = TextTower(**imported.config["text"])
    return np.asarray(jax.jit(tower.apply)({"params": imported.params["text"]}, words_jn))


def assert_same(reference, model, output, folder):
    """Compares with `output`, a function of a model of transformers and of tokens."""
    words_jn = make_tokens()

    def compute(hf):
        words = hf.torch.tensor(words_jn, dtype=hf.torch.int64)
        return numpy_of(output(model.load(hf, folder), words))

    expected_jd = reference(compute)
    expected_jd = expected_jd / np.linalg.norm(expected_jd, axis=-1, keepdims=True)
    assert_near(encode(folder, words_jn), expected_jd, 1e-4)


@pytest.mark.parametrize("projection", [None, 20])
def test_siglip_text_tower(reference, references, tmp_path, projection):
    width = projection or TEXT["hidden_size"]
    model = Model("SiglipTextModel", {**TEXT, "projection_size": width})
    folder = references.save(model, tmp_path)
    assert_same(reference, model, lambda tower, x: tower(x).pooler_output, folder)


@pytest.mark.parametrize("kind", ["Siglip", "Siglip2"])
def test_text_tower_of_a_full_siglip_model(reference, references, tmp_path, kind):
    vision = {k: v for k, v in VISION.items() if kind == "Siglip" or k != "image_size"}
    model = Model(f"{kind}Model", {"text_config": TEXT, "vision_config": vision})
    folder = references.save(model, tmp_path)
    assert_same(reference, model, lambda both, x: both.text_model(x).pooler_output, folder)


@pytest.mark.parametrize("end", [END, 2])  # 2: the wrong id in the config.json of old models
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower_of_a_full_clip_model(reference, references, tmp_path, end, activation):
    text = {**TEXT, "eos_token_id": end, "bos_token_id": 1, "hidden_act": activation}
    options = {"text_config": text, "vision_config": VISION, "projection_dim": 20}
    model = Model("CLIPModel", options)

    def features(both, words):
        return both.text_projection(both.text_model(words).pooler_output)

    assert_same(reference, model, features, references.save(model, tmp_path))


def test_clip_text_model_with_projection(reference, references, tmp_path):
    options = {**TEXT, "eos_token_id": END, "projection_dim": 20}
    model = Model("CLIPTextModelWithProjection", options)
    folder = references.save(model, tmp_path)
    assert_same(reference, model, lambda tower, x: tower(x).text_embeds, folder)


def test_clip_without_projection_is_refused(references, tmp_path):
    folder = references.save(Model("CLIPTextModel", {**TEXT, "eos_token_id": END}), tmp_path)
    with pytest.raises(UserError, match=r"missing  text_projection\.weight"):
        encode(folder, make_tokens())


@pytest.mark.parametrize(
    "model", [Model("Dinov2Model", VISION), Model("BertModel", TEXT)], ids=lambda model: model.name
)
def test_other_models_are_refused(references, tmp_path, model):
    with pytest.raises(UserError, match="no supported text tower"):
        encode(references.save(model, tmp_path), make_tokens())


def test_causal_tower_ignores_what_follows_the_end_token():
    tower = TextTower(30, 9, 16, 2, 2, 24, 8, causal=True, end_token=END)
    words_jn = make_tokens()
    params = tower.init(jax.random.key(0), jnp.asarray(words_jn))
    other_jn = np.where(np.cumsum(words_jn == END, axis=1) > 0, END, words_jn)
    np.testing.assert_allclose(
        tower.apply(params, words_jn), tower.apply(params, other_jn), atol=1e-6
    )
