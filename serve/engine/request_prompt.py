"""A request put into the words of training: what a client or a server asks the model.

A history alone is asked in the first wording of seqrec. A request is asked in the first wording that holds it
and the history, if there is one: of itemsearch, else of another task of the pack.
"""

from collections.abc import Sequence

from prompts.budget import FittedPrompt
from prompts.template import PromptTemplate, Turn
from sid_builder.errors import InputError


def search_wording(template: PromptTemplate, history: Sequence[int]) -> tuple[str, int] | None:
    """Task and wording that hold a request and the history, where there is one; None: the pack has none."""
    for task in sorted(template.pack.tasks, key=lambda name: (name != "itemsearch", name)):
        wording = template.request_wording(task, "query", history)
        if wording is not None:
            return task, wording
    return None


def request_prompt(
    template: PromptTemplate, message: str | None, history: Sequence[int], turns: Sequence[Turn] = ()
) -> FittedPrompt:
    """What the model is asked, in the words of training.

    Args:
        history: item indices, oldest first.
        turns: what was said and shown before, oldest first.

    Raises:
        InputError: when the pack has no wording with both a history and a request, or it all does not fit in
            a prompt. Titles of a history are cut to fit, what a client says is not: half a request is none.
    """
    if history and not message:
        return template.fitted(template.pack.templates("seqrec")[0], history, turns)
    text, found = message or "", search_wording(template, history)
    if found is None:
        if history:
            raise InputError(
                "history: no wording of this model holds a history and a request; give one of them"
            )
        return FittedPrompt(text, template.encode_prompt(text, turns))
    task, wording = found
    prompt = template.fitted(template.pack.tasks[task][wording], history, turns, {"query": text})
    if text not in prompt.text:
        raise InputError(
            f"text: {text[:60]!r}... makes a prompt of {prompt.cut_from} tokens, and the model's "
            f"max_prompt_tokens is {template.pack.max_prompt_tokens}; shorten it"
        )
    return prompt


def request_messages(
    template: PromptTemplate, message: str | None, history: Sequence[int], turns: Sequence[Turn] = ()
) -> list[dict[str, str]]:
    """Chat messages of a request, for an endpoint that frames them and adds nothing; see `request_prompt`."""
    history = [int(item) for item in history]
    return template.messages(request_prompt(template, message, history, turns).text, turns)


def request_ids(
    template: PromptTemplate, message: str | None, history: Sequence[int], turns: Sequence[Turn] = ()
) -> list[int]:
    """Token ids of a request's prompt; raises as `request_prompt` does."""
    if history and not message and not turns:
        return template.seqrec_prompt(history)  # the same ids, without the tokenizer
    return request_prompt(template, message, history, turns).ids
