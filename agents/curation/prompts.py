"""What the roles are told, in words: the task of each, and the JSON that it answers with.

Owns nothing but text. `answers` reads what comes back.
"""

from __future__ import annotations

from typing import Final

_BOX: Final = (
    '"bbox_2d" is [x1, y1, x2, y2] in pixels of that image as you see it, x to the right and y down; "image" is its '
    "number, from 1."
)

PROPOSE: Final = (
    "Write one question about these images for an exam in looking. It must need several of them: who sees only one, or "
    "none, cannot answer. Ask for what is really there, so that exactly one answer is right and two careful people "
    "would agree on it. Prefer details, relations between images, counts and differences to general knowledge. "
    "Answer with one JSON object and nothing else, in one of these forms:\n"
    '{"question": "...", "task_type": "snake_case_name", "grounding": {"image": k, "bbox_2d": [x1, y1, x2, y2], '
    '"label": "what it is"}}\n'
    '{"question": "...", "task_type": "snake_case_name", "answer": "a word or a number"}\n'
    '{"question": "...", "task_type": "snake_case_name", "options": ["...", "...", "...", "..."], "answer": "B"}\n'
    f"{_BOX} With options the answer is the letter of the right one: A is the first."
)

_SEEN: Final = "Answer the question about these images."
_UNSEEN: Final = (
    "Answer the question about images that you are not shown. Make the best guess that you can; never say that you "
    "cannot answer."
)
_SOLUTIONS: Final = {
    True: 'Answer with one JSON object and nothing else: {"image": k, "bbox_2d": [x1, y1, x2, y2], "label": "..."}. '
    + _BOX,
    False: 'Answer with one JSON object and nothing else: {"answer": "a word, a number or the letter of an option"}.',
}

JUDGE: Final = (
    "You check a question about these images before it goes into an exam. Answerable: everything that it asks about "
    "can be seen, and the claimed answer is right. Unique: no other answer is as good. Be strict: when in doubt, it is "
    'not. Answer with one JSON object and nothing else: {"answerable": true, "unique": true, "reason": "in few words"}.'
)


def solve(shown: bool, grounding: bool) -> str:
    """What a solver is told.

    Args:
        shown: Whether it sees the images.
        grounding: Whether the question wants a box.
    """
    return f"{_SEEN if shown else _UNSEEN} {_SOLUTIONS[grounding]}"
