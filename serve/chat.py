"""Ask a running endpoint for items, in plain words or by a history.

    python -m serve.chat --model out/beauty/model "something like the red trail shoes, but waterproof"
    python -m serve.chat --model out/beauty/model --history B001 B002 --n 10

A real OpenAI client against /v1/chat/completions. The model directory gives titles and wording; its weights
stay unread. Without a request, on a terminal, it holds a conversation: "cheaper" refines what was asked
before, and `new` starts over.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_origin, get_type_hints

from prompts.opening import open_template
from prompts.template import PromptTemplate, Turn
from serve.engine.recommendation import Recommendation
from serve.engine.request_prompt import request_messages
from sid_builder.cli import parse, run
from sid_builder.errors import InputError


@dataclass
class ChatArguments:
    """One conversation."""

    model: str = field(metadata={"help": "model directory the endpoint serves"})
    message: str | None = field(default=None, metadata={"help": "the request; may stand without its flag"})
    history: list[str] = field(
        default_factory=list, metadata={"help": "item_ids chosen so far, oldest first"}
    )
    n: int = field(default=5, metadata={"help": "items to show"})
    base_url: str = field(default="http://127.0.0.1:8000/v1", metadata={"help": "endpoint"})
    api_key: str = field(default="none", metadata={"help": "key of the endpoint, if it asks for one"})
    temperature: float = field(default=1.0, metadata={"help": "of the samples behind the first item (vLLM)"})
    seed: int = field(default=0, metadata={"help": "of the samples (vLLM)"})
    wait: float = field(
        default=0, metadata={"help": "seconds to wait for an endpoint that is still starting"}
    )

    def check(self) -> None:
        if not 1 <= self.n <= 100:
            raise InputError(f"n: {self.n}; choose between 1 and 100 items")
        if not 0.01 <= self.temperature <= 10:
            raise InputError(f"temperature: {self.temperature}; choose between 0.01 and 10")
        if self.wait < 0:
            raise InputError(f"wait: {self.wait}; give a number of seconds of at least 0")


@contextmanager
def _one_line_errors(client: Any) -> Iterator[None]:
    """What the endpoint refuses, or its absence, as InputError."""
    import openai

    try:
        yield
    except openai.APIConnectionError as error:
        raise InputError(
            f"base_url: {client.base_url} cannot be reached; start `python -m serve.launch --model DIR` first"
        ) from error
    except openai.APIStatusError as error:
        raise InputError(f"endpoint: refused the request ({' '.join(error.message.split())})") from error


def recommend(
    client: Any,
    template: PromptTemplate,
    message: str | None,
    history: Sequence[int],
    turns: Sequence[Turn],
    n: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Recommendation]:
    """The endpoint's ranked items: at most n.

    An endpoint that ranks (`--engine torch`) is asked once. Of one that samples (vLLM): the greedy item, then
    the best of 4 n samples by score, fewer than n when fewer came up.

    Args:
        client: an `openai.OpenAI`.

    Raises:
        InputError: when the endpoint cannot be reached, refuses, or answers with something that is no item.
    """
    with _one_line_errors(client):
        card = client.models.list().data[0]
        if card.owned_by == "sidereal":
            return ask_ranked(client, card.id, template, message, history, turns, n)
        messages = request_messages(template, message, history, turns)
        ask = {"model": card.id, "messages": messages, "logprobs": True}
        choices = [(choice, 1.0) for choice in client.chat.completions.create(**ask, temperature=0).choices]
        if n > 1:
            sampled = client.chat.completions.create(
                **ask, temperature=temperature, n=min(4 * n, 64), seed=seed
            )
            # vLLM reports the logits it draws from: log-probs divided by the temperature.
            choices += [(choice, temperature) for choice in sampled.choices]
    scores: dict[tuple[int, ...], float] = {}
    for choice, scale in choices:
        codes, score = read_choice(template, choice)
        scores[codes] = max(score * scale, scores.get(codes, float("-inf")))
    return rank_items(template, scores)[:n]


def ask_ranked(
    client: Any,
    served: str,
    template: PromptTemplate,
    message: str | None,
    history: Sequence[int],
    turns: Sequence[Turn],
    n: int,
) -> list[Recommendation]:
    """The list of an endpoint that puts words into the wording of training itself; one choice is one SID."""
    catalog = template.index.catalog
    item_ids = [catalog.item_ids[item] for item in history]
    answer = client.chat.completions.create(
        model=served,
        messages=template.messages(message or "", turns),
        n=n,
        extra_body={"history": item_ids} if item_ids else {},
    )
    for title in answer.resolved:
        print(f"(taken for your history: {title['title']})")
    ranked: list[Recommendation] = []
    for choice in answer.choices:
        sid, score = choice.recommendation["sid"], choice.recommendation["score"]
        for item_id in (choice.recommendation["item_id"], *choice.recommendation["same_sid"]):
            item = catalog.item_index(item_id)
            row = (item, item_id, catalog.titles[item], sid, score)
            ranked.append(Recommendation(len(ranked) + 1, *row))
    return ranked[:n]


def wait_for_endpoint(client: Any, seconds: float) -> None:
    """Return once the endpoint lists its models, or when `seconds` are over (what follows then says why)."""
    import openai

    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            client.with_options(max_retries=0).models.list()
            return
        except (openai.APIConnectionError, openai.APIStatusError):
            time.sleep(1)


def read_choice(template: PromptTemplate, choice: Any) -> tuple[tuple[int, ...], float]:
    """Codes of one answer and the sum of its SID tokens' reported log-probs."""
    text = choice.message.content or ""
    codes = template.index.semantic_ids.parse(text)
    if codes is None or template.index.trie.leaf_of(codes) is None:
        raise InputError(
            f"endpoint: answered {text!r}, which is no item here; serve this very --model directory"
        )
    return codes, sum(token.logprob for token in choice.logprobs.content[: len(codes)])


def rank_items(template: PromptTemplate, scores: dict[tuple[int, ...], float]) -> list[Recommendation]:
    """Score descending, then codes; items that share an SID follow each other, most frequent first."""
    trie, catalog, ids = template.index.trie, template.index.catalog, template.index.semantic_ids
    ranked: list[Recommendation] = []
    for codes, score in sorted(scores.items(), key=lambda entry: (-entry[1], entry[0])):
        leaf = trie.leaf_of(codes)
        assert leaf is not None
        for item in trie.items_of_leaf(leaf):
            row = (catalog.item_ids[item], catalog.titles[item], ids.spell(int(item)))
            ranked.append(Recommendation(len(ranked) + 1, int(item), *row, score))
    return ranked


def format_table(recommendations: Sequence[Recommendation], width: int = 60) -> str:
    """Rank, title, item_id and score as aligned text."""
    rows = [("rank", "title", "item_id", "score")]
    for entry in recommendations:
        title = entry.title if len(entry.title) <= width else entry.title[: width - 1] + "…"
        rows.append((str(entry.rank), title or "(no title)", entry.item_id, f"{entry.score:.3f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>8}".rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def converse(read: Callable[[], str], ask: Callable[[str, list[Turn]], list[Recommendation]]) -> None:
    """Ask for one line after the other until an empty one.

    Each goes with what was said and shown before (the first item of every answer); `new` forgets it. What
    cannot be answered is said, and the conversation goes on without it.
    """
    turns: list[Turn] = []
    while message := read().strip():
        if message == "new":
            turns = []
            continue
        try:
            found = ask(message, turns)
        except InputError as error:  # a border: the reader can do better with the next line
            print(f"error: {error}")
        else:
            turns = [*turns, (message, found[0].item_index)]


def name_message(argv: Sequence[str]) -> list[str]:
    """Put `--message` before the one argument that belongs to no flag, so that it may stand alone.

    A list flag takes everything up to the next flag, so a request goes before `--history`.
    """
    hints = get_type_hints(ChatArguments)
    lists = {
        f"--{entry.name}"
        for entry in dataclasses.fields(ChatArguments)
        if get_origin(hints[entry.name]) is list
    }
    result: list[str] = []
    expects, many = False, False
    for argument in argv:
        if argument.startswith("--"):
            many = argument in lists
            expects = "=" not in argument and argument not in ("--help",) and not many
        elif not expects and not many:
            result.append("--message")
        else:
            expects = False
        result.append(argument)
    return result


def main(argv: Sequence[str]) -> None:
    (arguments,) = parse(ChatArguments, name_message(argv), description=__doc__)
    try:
        import openai
    except ModuleNotFoundError as error:
        raise InputError("openai: is not installed; install sidereal[cpu] or sidereal[vllm]") from error
    template = open_template(arguments.model)
    history = [template.index.catalog.item_index(item_id) for item_id in arguments.history]
    client = openai.OpenAI(base_url=arguments.base_url, api_key=arguments.api_key, timeout=120, max_retries=1)

    wait_for_endpoint(client, arguments.wait)

    def answer(message: str | None, turns: list[Turn]) -> list[Recommendation]:
        sampling = (arguments.temperature, arguments.seed)
        found = recommend(client, template, message, history, turns, arguments.n, *sampling)
        print(format_table(found))
        if len(found) < arguments.n:
            print(f"({len(found)} different items came up; where it samples, --temperature finds more)")
        return found

    if arguments.message or history:
        answer(arguments.message, [])
    elif sys.stdin.isatty():
        print('What are you looking for? ("new" starts over, an empty line ends)')
        converse(lambda: input("> "), answer)
    else:
        raise InputError("message: nothing was asked; give a request in quotes or --history item_id ...")


if __name__ == "__main__":
    run(main)
