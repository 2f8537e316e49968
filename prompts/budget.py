"""What of a request fits in a prompt: the newest items of its history, then the beginnings of its texts."""

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sid_builder.errors import InputError


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt within its budget.

    Attributes:
        text: what the user says in it.
        ids: token ids of the whole prompt.
        cut_from: tokens it had, with the same items of history, before a text of it was cut; 0: none was.
    """

    text: str
    ids: list[int]
    cut_from: int = 0


def beginning(text: str, most: int) -> str:
    """The first words of a text, `most` characters or fewer; of a first word longer than that, its beginning
    (a title may be in a script without blanks).
    """
    if len(text) <= most:
        return text
    words = re.sub(r"\s+\S*\Z", "", text[: most + 1])
    return words if 0 < len(words) <= most else text[:most]


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest of low..high that fits, by bisection; `low`, unasked, where no other does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def fit(
    make: Callable[[int, int | None], FittedPrompt], num_items: int, budget: int, wording: str
) -> FittedPrompt:
    """The prompt with the most items of history that is within `budget` tokens; where a single item is too
    much, or there is none, with as many characters of each text as fit.

    Args:
        make: the prompt with the newest so many items and at most so many characters of each text (None:
            whole texts).
        num_items: items of history that there are.
        wording: for the error.

    Raises:
        InputError: when a prompt with a character of each text is over budget.
    """

    def fits(prompt: FittedPrompt) -> bool:
        return len(prompt.ids) <= budget

    prompt = make(num_items, None)
    if num_items > 1 and not fits(prompt):
        prompt = make(largest(1, num_items - 1, lambda kept: fits(make(kept, None))), None)
    if fits(prompt):
        return prompt
    least = min(num_items, 1)
    shortest = make(least, 1)
    if not fits(shortest):
        raise InputError(
            f"max_prompt_tokens: {budget} is too small for the wording {wording[:60]!r}, which takes "
            f"{len(shortest.ids)} tokens with {least} item(s) of history and its texts cut to a character "
            f"({prompt.text[:80]!r}...); raise it, or shorten the wording or what was said before"
        )
    # A longer text may take fewer tokens, where its last word is one that the tokenizer knows: what is found
    # fits all the same, and is hardly ever shorter than need be.
    most = largest(1, len(prompt.text), lambda most: fits(make(least, most)))
    return replace(make(least, most), cut_from=len(prompt.ids))


def warn_of_cuts(cut_from: Iterable[int], budget: int) -> None:
    """One warning for all prompts of a run that had a text cut, if any had.

    Args:
        cut_from: of `FittedPrompt`, for every prompt.
    """
    cut = [tokens for tokens in cut_from if tokens]
    if cut:
        warnings.warn(
            f"max_prompt_tokens: {len(cut):,} prompt(s) were over {budget} tokens, the longest took "
            f"{max(cut):,}; their texts were cut to the first words that fit. Raise it to keep them whole",
            stacklevel=2,
        )
