"""From what a language model says to texts that may be learnt from; everything else is counted by reason."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sft.endpoint_intents.prompts import ANSWER_KEY

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_WORD = re.compile(r"\w+")
_MOST_CHARACTERS = 20_000  # an answer is a few hundred; a model that raves on must not cost minutes
# "tent" as a whole title is also the word for the thing: such a title cannot be kept out of a request.
_SHORTEST_TITLE = 3


def usable_texts(
    answer: dict[str, Any], number: int, max_words: int, hidden_titles: Sequence[str], dropped: Counter[str]
) -> list[str]:
    """The texts of an answer that can be used, at most `number`.

    Args:
        answer: a row of the answer log: `content` and `finish_reason`, or `rejected`.
        hidden_titles: titles of which none of three words or more may occur in a text.
        dropped: counts what is not used: rejected (by the endpoint), cut_off, not_json, wrong_type (JSON
            without a list of texts) count answers; empty, too_long, leaks_title, duplicate, surplus count
            texts.
    """
    if "rejected" in answer:
        dropped["rejected"] += 1
        return []
    texts = _listed_texts(answer["content"])
    if isinstance(texts, str):
        dropped["cut_off" if answer["finish_reason"] == "length" else texts] += 1
        return []
    titles = [
        words for title in hidden_titles if len(words := _WORD.findall(title.lower())) >= _SHORTEST_TITLE
    ]
    kept: dict[str, str] = {}
    for text in (" ".join(text.split()) for text in texts):
        reason = _fault(text, max_words, titles)
        if reason is None and text.lower() in kept:
            reason = "duplicate"
        if reason is None and len(kept) == number:
            reason = "surplus"
        if reason is None:
            kept[text.lower()] = text
        else:
            dropped[reason] += 1
    return list(kept.values())


def _fault(text: str, max_words: int, titles: Sequence[list[str]]) -> str | None:
    words = _WORD.findall(text.lower())
    if not words:
        return "empty"
    if len(text.split()) > max_words:
        return "too_long"
    spaced = f" {' '.join(words)} "
    return "leaks_title" if any(f" {' '.join(title)} " in spaced for title in titles) else None


def _listed_texts(content: str) -> list[str] | str:
    """The list in the first JSON object that holds one, wherever it stands (in a code fence, after a
    sentence, behind a thought); else why there is none.
    """
    content = _THOUGHT.sub("", content)[:_MOST_CHARACTERS]
    decoder, reason, start = json.JSONDecoder(), "not_json", content.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(content, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            texts = found.get(ANSWER_KEY)
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                return texts
            reason = "wrong_type"
        start = content.find("{", end)
    return reason
