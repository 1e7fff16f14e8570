"""Tokenizers equal those of transformers, and damaged files are refused."""

import json
import sys

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.text import tokenizers
from invnext_jax.evaluation.text.tokenizers import FileTokenizer, WordTokenizer

TEXTS = ["Lower  LOW lo", "a new lower row", "low", "low lower low lower low lower", "!?"]
MERGES = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>")]


def make_clip_tokenizer(hf):
    letters = list("lowerstidna!?")
    pieces = [*letters, *(f"{x}</w>" for x in letters), "lo", "low</w>", "er</w>"]
    special = ["<unk>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate([*pieces, *special])}
    return hf.models.CLIPTokenizer(vocab=vocab, merges=MERGES, unk_token="<unk>")


def make_siglip2_tokenizer(hf):
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"lowerstidna▁", "lo", "low", "▁low"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("l", "o"), ("lo", "w"), ("▁", "low")]
    return hf.models.Siglip2Tokenizer(vocab=vocab, merges=merges)


@pytest.fixture
def clip_folder(references, tmp_path):
    return references.save_tokenizer("clip", make_clip_tokenizer, tmp_path)


@pytest.fixture
def siglip2_folder(references, tmp_path):
    return references.save_tokenizer("siglip2", make_siglip2_tokenizer, tmp_path)


def test_clip_tokens_equal_those_of_transformers(reference, clip_folder):
    def compute(hf):
        tokenizer = hf.models.AutoTokenizer.from_pretrained(clip_folder)
        padded = tokenizer(TEXTS, padding="max_length", max_length=8, truncation=True)
        return {"padded": padded["input_ids"], "whole": tokenizer(TEXTS)["input_ids"]}

    expected = reference(compute)
    words_jn, cut = FileTokenizer(clip_folder, 8, lower=False).tokenize(TEXTS)
    assert words_jn.dtype == np.int32
    np.testing.assert_array_equal(words_jn, expected["padded"])
    assert cut == sum(len(row) > 8 for row in expected["whole"]) > 0


def test_siglip2_tokens_equal_those_of_transformers(reference, siglip2_folder):
    options = {"padding": "max_length", "padding_side": "right", "max_length": 9}
    expected = reference(
        lambda hf: make_siglip2_tokenizer(hf)(TEXTS[:3], truncation=True, **options)["input_ids"]
    )
    words_jn, _ = FileTokenizer(siglip2_folder, 9, lower=True).tokenize(TEXTS[:3])
    np.testing.assert_array_equal(words_jn, expected)
    assert words_jn[2, -1] == 0  # <pad>


def test_end_token_of_the_settings_is_added_and_kept_when_a_caption_is_cut(siglip2_folder):
    path = siglip2_folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"add_eos_token": True}))
    tokenizer = FileTokenizer(siglip2_folder, 4, lower=True)
    words_jn, cut = tokenizer.tokenize(["low", "low low low low"])
    assert (words_jn[0] == 1).argmax() == 1 and words_jn[1, -1] == 1  # <eos>
    assert cut == 1


def test_capitals_do_not_matter(clip_folder):
    tokenizer = FileTokenizer(clip_folder, 8, lower=True)
    np.testing.assert_array_equal(*(tokenizer.tokenize([text])[0] for text in ("LOW", "low")))


def test_words_are_numbered_and_unknown_ones_share_a_number():
    tokenizer = WordTokenizer(["A red disc,", "a blue disc moves up"], 4)
    assert tokenizer.words == 2 + 6
    words_jn, cut = tokenizer.tokenize(["a red disc", "a Red ring", "a red disc moves up"])
    np.testing.assert_array_equal(words_jn[0, :3], words_jn[2, :3])
    assert words_jn[0, 3] == 0 and words_jn[1, 2] == 1 and cut == 1


def test_the_most_frequent_words_are_the_vocabulary(monkeypatch):
    monkeypatch.setattr(tokenizers, "MAX_VOCABULARY", 2)
    for limit in (4, 2**20):
        monkeypatch.setattr(tokenizers, "MAX_COUNTED", limit)
        tokenizer = WordTokenizer(["a dog", "a cat", "a dog", "one two three", "four"], 2)
        assert tokenizer.words == 2 + 2
        np.testing.assert_array_equal(tokenizer.tokenize(["a dog", "cat"])[0], [[2, 3], [1, 0]])


def test_missing_or_damaged_files_are_refused(clip_folder, monkeypatch):
    path, settings = clip_folder / "tokenizer.json", clip_folder / "tokenizer_config.json"
    text, good = path.read_text(), settings.read_text()
    settings.write_text("{}")
    with pytest.raises(UserError, match="pad_token=None, which is not a token"):
        FileTokenizer(clip_folder, 8, lower=False)
    settings.write_text(good)
    for damaged, message in (
        ("[1]", "does not contain a JSON object"),
        (text[:100], "is damaged"),
        ('{"model": 3}', "is not a tokenizer"),
    ):
        path.write_text(damaged)
        with pytest.raises(UserError, match=message):
            FileTokenizer(clip_folder, 8, lower=False)
    path.write_text(text)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(UserError, match=r"pip install 'invnext-jax\[text\]'"):
            FileTokenizer(clip_folder, 8, lower=False)
    path.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        FileTokenizer(clip_folder, 8, lower=False)


PAD = {"id": 0, "content": "<pad>", "special": True, "normalized": False}
PAD |= {"single_word": False, "lstrip": False, "rstrip": False}
WORDS = {"type": "WordLevel", "vocab": {"<pad>": 0, "a": 1, "dog": 2}, "unk_token": "a"}
ZZ = {"SpecialToken": {"id": "zz", "type_id": 0}}


def write_tokenizer(folder, settings=None, **fields):
    content = {"version": "1.0", "added_tokens": [PAD], "model": WORDS} | fields
    content |= {"pre_tokenizer": fields.get("pre_tokenizer", {"type": "Whitespace"})}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"pad_token": "<pad>"} | (settings or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def template(ids):
    special = {"zz": {"id": "zz", "ids": ids, "tokens": ["zz"] * len(ids)}} if ids else {}
    return {"type": "TemplateProcessing", "single": [ZZ], "pair": [], "special_tokens": special}


# In the process that calls it, the package raises exceptions that are not of the type Exception.
CRASHES = {
    "regular expression": {
        "pre_tokenizer": {
            **{"type": "Split", "pattern": {"Regex": "(a+)+$"}},
            **{"behavior": "Isolated", "invert": False},
        }
    },
    "characters": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
    "template": {"post_processor": template([])},
}


@pytest.mark.parametrize("kind", CRASHES)
def test_a_crash_of_the_tokenizer_is_one_sentence(kind, tmp_path):
    write_tokenizer(tmp_path, **CRASHES[kind])
    with pytest.raises(UserError, match=r"tokenizer\.json (crashed|cannot be used) \("):
        FileTokenizer(tmp_path, 4, lower=True).tokenize(["a" * 40 + "b"])


def test_texts_without_a_token_and_ids_outside_of_the_vocabulary_are_refused(tmp_path):
    write_tokenizer(tmp_path, model={**WORDS, "unk_token": "missing"})
    with pytest.raises(UserError, match=r"Missing \[UNK\] token"):
        FileTokenizer(tmp_path, 4, lower=True).tokenize(["a cat"])
    write_tokenizer(tmp_path, post_processor=template([500]))
    with pytest.raises(UserError, match="adds the unknown token 500"):
        FileTokenizer(tmp_path, 4, lower=True).tokenize(["a"])
    write_tokenizer(tmp_path, settings={"add_eos_token": True, "eos_token": "dog"})
    assert FileTokenizer(tmp_path, 4, lower=True).tokenize(["a"])[0].tolist() == [[1, 2, 0, 0]]


def test_the_size_of_the_vocabulary_is_that_of_the_largest_id(tmp_path):
    write_tokenizer(tmp_path, model={**WORDS, "vocab": {"<pad>": 0, "a": 1, "dog": 500}})
    tokenizer = FileTokenizer(tmp_path, 4, lower=True)
    assert tokenizer.words == 501
    assert tokenizer.tokenize(["A dog"])[0].tolist() == [[1, 500, 0, 0]]


def test_texts_that_grow_without_a_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "SECONDS", 2.0)
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    write_tokenizer(tmp_path, normalizer={"type": "Sequence", "normalizers": [replace] * 9})
    tokenizer = FileTokenizer(tmp_path, 4, lower=True)
    with pytest.raises(UserError, match="needs more than 2 s for 1 captions|crashed"):
        tokenizer.tokenize(["a"])


def test_texts_are_encoded_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "TEXTS_PER_CALL", 2)
    write_tokenizer(tmp_path)
    words_jn, cut = FileTokenizer(tmp_path, 2, lower=True).tokenize(["a", "dog", "a dog a"])
    assert words_jn.tolist() == [[1, 0], [2, 0], [1, 2]] and cut == 1
