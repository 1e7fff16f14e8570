import pytest

from invnext_jax.synthetic_world import tokenizer
from invnext_jax.synthetic_world.captions import Caption, all_image_captions


def test_word_ids_are_alphabetical_after_padding():
    captions = [Caption("a red disc", {}), Caption("something red", {})]
    assert tokenizer.build_vocabulary(captions) == {
        tokenizer.PAD: 0,
        "a": 1,
        "disc": 2,
        "red": 3,
        "something": 4,
    }


def test_captions_are_padded_at_the_end():
    captions = [Caption("a red disc", {}), Caption("red", {})]
    vocabulary = tokenizer.build_vocabulary(captions)
    assert tokenizer.tokenize(captions, vocabulary, 4).tolist() == [[1, 3, 2, 0], [3, 0, 0, 0]]


def test_too_long_caption_is_named_in_the_error():
    captions = [Caption("a red disc", {})]
    with pytest.raises(ValueError, match="'a red disc' has 3 words"):
        tokenizer.tokenize(captions, tokenizer.build_vocabulary(captions), 2)


def test_captions_of_the_simple_level_have_different_tokens():
    captions = all_image_captions("simple")
    tokens_jn = tokenizer.tokenize(captions, tokenizer.build_vocabulary(captions), 8)
    assert len({tuple(tokens_n) for tokens_n in tokens_jn.tolist()}) == len(captions)
