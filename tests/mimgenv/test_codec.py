"""The codec and the tokenizer that ships with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mimgenv.codec import Codec, default_codec
from mimgenv.errors import ConfigurationError, TurnError

CODEC = default_codec()
FILE: dict[str, Any] = json.loads(files("mimgenv").joinpath("assets/tokenizer.json").read_text("utf-8"))
SPECIAL = ("<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>")


def token(name: str) -> int:
    index = CODEC.tokenizer.token_to_id(name)
    assert index is not None
    return index


def words(*special: str) -> Tokenizer:
    """A tokenizer of two words, and special tokens."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[?]": 2}, unk_token="[?]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(name) for name in special])
    return tokenizer


# Text and ids


@given(st.text())
@example("é漢字🎉\x00\r\n\x0b\ufeff\u202e")
@example(
    "red circle",
)
@example('<think>a</think><answer>{"image": 1, "label": "red circle", "bbox_2d": [0, 7, 84, 14]}</answer>')
@example("7, 14, 840, 84,84 , 0, user\nuser\nImage-1: \nImage-3: ")
@example("redred reddish red  circle circles <0x41> <0xFF>")
@example("<|im_end|><|image_pad|> <|im_start|>")
def test_text_survives_encoding_and_decoding(text: str) -> None:
    assert CODEC.decode(CODEC.encode(text)) == text


@given(st.lists(st.integers(0, CODEC.vocab_size - 1), max_size=40))
def test_any_ids_of_the_vocabulary_decode_to_text_that_can_be_written(ids: list[int]) -> None:
    CODEC.decode(ids).encode("utf-8")


def test_characters_that_utf8_cannot_write_become_question_marks() -> None:
    assert CODEC.decode(CODEC.encode("a\ud800b")) == "a?b"


def test_every_byte_has_a_token_so_that_any_text_can_be_written() -> None:
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(CODEC.tokenizer.get_vocab())
    assert FILE["model"]["byte_fallback"] is True
    assert CODEC.encode("漢") == tuple(token(f"<0x{byte:02X}>") for byte in "漢".encode())


def test_the_size_is_that_of_the_vocabulary_in_the_file() -> None:
    ids = set(FILE["model"]["vocab"].values()) | {added["id"] for added in FILE["added_tokens"]}
    assert ids == set(range(CODEC.vocab_size))


def test_the_codec_is_made_once() -> None:
    assert default_codec() is CODEC


@pytest.mark.slow
def test_training_the_tokenizer_anew_gives_the_file_that_ships() -> None:
    """Where this fails, what episodes say has changed.

    `python -m mimgenv.assets.train_tokenizer` makes the file anew.
    """
    from mimgenv.assets.train_tokenizer import train

    shipped = files("mimgenv").joinpath("assets/tokenizer.json").read_text("utf-8")
    assert json.loads(train().to_str()) == json.loads(shipped)


# Turns


def test_a_turn_ends_with_the_end_of_turn_token_and_is_read_without_it() -> None:
    ids = CODEC.encode_turn("<think></think><answer>1</answer>")
    assert ids[-1] == token("<|im_end|>") == CODEC.end_ids[0]
    assert CODEC.decode_turn(ids) == CODEC.decode_turn(ids[:-1]) == "<think></think><answer>1</answer>"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_either_end_token_may_close_a_turn_but_stand_nowhere_else(end: str) -> None:
    a = CODEC.encode("a")
    assert CODEC.decode_turn((*a, token(end))) == "a"
    for bad in ((*a, token(end), *a), (*a, token(end), token(end)), (token(end), *a)):
        with pytest.raises(TurnError) as caught:
            CODEC.decode_turn(bad)
        assert caught.value.code == "bad_token"


@pytest.mark.parametrize("index", [-1, CODEC.vocab_size, 2**31, -(2**63), 2**70, *map(token, SPECIAL)])
def test_ids_out_of_range_and_special_ids_are_bad_tokens(index: int) -> None:
    a = CODEC.encode("a")
    for bad in ((index,), (index, *a), (*a, index), (*a, index, CODEC.end_ids[0])):
        with pytest.raises(TurnError) as caught:
            CODEC.decode_turn(bad)
        assert caught.value.code == "bad_token"


def test_no_ids_are_the_empty_turn() -> None:
    assert CODEC.decode_turn(()) == CODEC.decode_turn([]) == CODEC.decode_turn(CODEC.end_ids[:1]) == ""


def test_a_sampler_is_told_to_ban_what_a_turn_may_not_hold_and_nothing_else() -> None:
    assert set(map(token, SPECIAL)) <= CODEC.banned_ids
    assert not CODEC.banned_ids & set(CODEC.end_ids)
    for index in range(CODEC.vocab_size):
        if index in CODEC.banned_ids:
            with pytest.raises(TurnError):
                CODEC.decode_turn([index])
        else:
            CODEC.decode_turn([index])


# Tokenizers of others


def test_any_tokenizer_with_an_end_of_turn_token_will_do() -> None:
    codec = Codec(words("<|endoftext|>", "<|pad|>"))
    assert (codec.vocab_size, codec.end_ids, codec.banned_ids) == (5, (3,), frozenset({4}))
    assert codec.encode_turn("a b") == (0, 1, 3)
    assert codec.decode_turn((0, 1, 3)) == "a b"


def test_the_first_of_several_end_tokens_closes_a_turn() -> None:
    assert Codec(words("<|endoftext|>", "<|im_end|>")).end_ids == (4, 3)


def test_a_tokenizer_without_an_end_of_turn_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="end-of-turn"):
        Codec(words("<|pad|>"))
