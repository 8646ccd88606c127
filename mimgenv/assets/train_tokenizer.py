"""Trains the small tokenizer that ships with the package: `python -m mimgenv.assets.train_tokenizer [out.json]`.

A byte-fallback BPE over what episodes say (corpus.json), so that any text can be written, plus whole tokens for what
the tiny world repeats in every turn: the pieces of an answer, the coordinates of its lattice, and each of its labels
fused with what follows it, such as `red circle", "bbox_2d": [`, as a BPE without word boundaries would merge it. With
the label and the bracket as separate tokens, a tiny model learns to box the wrong object first. The same code gives
the same file.
"""

from __future__ import annotations

import itertools
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, trainers

from mimgenv.scenes.flat import COLOURS, SHAPES

ROLES: Final = ("endoftext", "im_start", "im_end")
PLACES: Final = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
VISION: Final = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
SPECIAL_TOKENS: Final = [f"<|{name}|>" for name in (*ROLES, *PLACES, *VISION)]
"""Qwen2.5-VL's, in its order."""
TAGS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
PIECES: Final = (
    '</think><answer>{"image": ',
    "</think><answer>",
    ', "label": "',
    '", "bbox_2d": [',
    ', "bbox_2d": [',
    "]}</answer>",
    '</think><tool_call>{"name": "zoom", "arguments": {"image": ',
    "]}}</tool_call>",
    "user\n",
    "assistant\n",
    "Image-1: ",
    "\nImage-2: ",
    "\nImage-3: ",
    "Image-3: ",
    "Image-4: ",
)
AFTER_LABEL: Final = (
    '", "bbox_2d": [',
    '</think><answer>{"image": ',
    '</think><tool_call>{"name": "zoom", "arguments": {"image": ',
)
"""What follows a label in a turn, fused with it: the token from which the place, or the image, is told."""
LATTICE: Final = tuple(str(coordinate) for coordinate in range(0, 85, 7))
MERGED_WORDS: Final = 320
"""How many tokens the BPE learns beside bytes, printable characters and the pieces above."""
CORPUS: Final = Path(__file__).with_name("corpus.json")


def whole_tokens() -> Iterator[AddedToken]:
    """The tokens that are never split: pieces of turns, words of the tiny world, coordinates."""
    for piece in (*TAGS, *PIECES):
        yield AddedToken(piece, normalized=False)
    for colour, shape in itertools.product(COLOURS, SHAPES):
        for piece in AFTER_LABEL:
            yield AddedToken(f"{colour} {shape}{piece}", normalized=False)
    for colour in COLOURS:
        yield AddedToken(f"{colour}: ", normalized=False)
    for word in (*COLOURS, *(f" {shape}" for shape in SHAPES)):
        yield AddedToken(word, normalized=False, single_word=not word.startswith(" "))
    for number in LATTICE:
        yield AddedToken(f"{number}, ", normalized=False)
        yield AddedToken(number, normalized=False, single_word=True)


def corpus() -> Iterator[str]:
    """What episodes said when the vocabulary was settled, cut at whole tokens: text to how often it is taken.

    It is kept in a file and not asked of the environment, so that a new task type never changes the vocabulary.
    """
    for text, times in json.loads(CORPUS.read_text("utf-8")).items():
        yield from [text] * times


def train() -> Tokenizer:
    """The tokenizer, trained anew."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None, fuse_unk=False))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [character for character in string.printable if character not in "\r\x0b\x0c"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL_TOKENS) + 256 + len(alphabet) + MERGED_WORDS,
        special_tokens=[*SPECIAL_TOKENS, *byte_tokens],
        initial_alphabet=alphabet,
        max_token_length=48,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # the trainer marks every token it is given as special: only the conversation's own tokens are
    plain = Tokenizer(tokenizer.model)
    plain.decoder = tokenizer.decoder
    plain.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    plain.add_tokens(list(whole_tokens()))
    return plain


if __name__ == "__main__":
    default = Path(__file__).with_name("tokenizer.json")
    train().save(sys.argv[1] if len(sys.argv) > 1 else str(default), pretty=True)
