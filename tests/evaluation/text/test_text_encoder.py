"""A text encoder that is loaded from a folder returns the features of transformers."""

import json

import numpy as np
import pytest
from parity import numpy_of
from reference_models import Model
from safetensors.numpy import save_file

from invnext_jax.errors import UserError
from invnext_jax.evaluation.text import text_encoder

TEXTS = ["low", "lower low", "low lower low lower low lower low lower"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def make_clip_tokenizer(hf):
    pieces = ["l", "o", "w", "e", "r", "lo", "w</w>", "r</w>", "low</w>", "er</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>")]
    return hf.models.CLIPTokenizer(vocab=vocab, merges=merges)


def clip(words=16):
    options = {
        **{**SIZES, "vocab_size": words, "num_attention_heads": 4, "max_position_embeddings": 8},
        **{"eos_token_id": 11, "projection_dim": 20},
    }
    return Model("CLIPTextModelWithProjection", options)


@pytest.fixture
def clip_folder(references, tmp_path):
    references.save(clip(), tmp_path)
    return references.save_tokenizer("clip of 12 tokens", make_clip_tokenizer, tmp_path)


def test_features_of_texts_equal_those_of_transformers(reference, clip_folder, capsys):
    def compute(hf):
        options = {"padding": "max_length", "max_length": 8, "truncation": True}
        words = make_clip_tokenizer(hf)(TEXTS, return_tensors="pt", **options)
        return numpy_of(clip().load(hf, clip_folder)(**words).text_embeds)

    encoder = text_encoder.load_text_encoder(clip_folder)
    actual_jd = encoder.encode(encoder.params, encoder.tokenize(TEXTS))
    expected_jd = reference(compute)
    expected_jd = expected_jd / np.linalg.norm(expected_jd, axis=-1, keepdims=True)
    np.testing.assert_allclose(actual_jd, expected_jd, atol=1e-4)
    assert "1 of 3 captions have more than 8 tokens" in capsys.readouterr().out


def test_features_do_not_depend_on_the_batch(clip_folder, monkeypatch):
    encoder = text_encoder.load_text_encoder(clip_folder)
    words_jn = encoder.tokenize(TEXTS[:2] * 3)
    expected_jd = encoder.encode(encoder.params, words_jn)
    monkeypatch.setattr(text_encoder, "BATCH", 4)
    np.testing.assert_allclose(encoder.encode(encoder.params, words_jn), expected_jd, atol=1e-6)


def test_folder_without_a_tokenizer_is_refused(clip_folder):
    (clip_folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json: download it, or write it"):
        text_encoder.load_text_encoder(clip_folder)


def test_tokenizer_of_another_model_is_refused(references, clip_folder):
    references.save(clip(words=11), clip_folder)
    with pytest.raises(UserError, match="has 12 tokens, but the model has 11"):
        text_encoder.load_text_encoder(clip_folder)


def test_small_encoder_tells_texts_apart():
    texts = ["a red disc moves up", "a red disc moves down", "a blue disc moves up"]
    encoder = text_encoder.make_text_encoder(texts, seed=0)
    text_jd = encoder.encode(encoder.params, encoder.tokenize(texts))
    similarity_jj = text_jd @ text_jd.T
    np.testing.assert_allclose(np.diag(similarity_jj), 1, rtol=1e-5)
    assert similarity_jj[~np.eye(3, dtype=bool)].max() < 0.99


def test_embeddings_larger_than_the_file_are_refused(tmp_path):
    # The module would compute a mask of length x length.
    config = {"model_type": "clip_text_model", "max_position_embeddings": 2**14}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(9, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="33,685,504 values, but the file has only 9 values"):
        text_encoder.load_text_encoder(tmp_path)
