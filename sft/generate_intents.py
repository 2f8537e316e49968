"""Have a language model write shopping requests, intentions and preferences: data of the natural-language
tasks.

    python -m sft.generate_intents --sid_dir out/beauty/sids --base_url http://127.0.0.1:8000/v1 \
        --model Qwen/Qwen2.5-7B-Instruct --output_dir out/beauty/llm_intents

Any OpenAI-compatible endpoint will do. Answers are kept in `.<output_dir>.work/answers.jsonl` as they come
and are never asked for twice: an interrupted run, or one over more items, goes on from there.
`sft.train --intents` and `serve.evaluate_search --intents` read what this writes; `sft.compose_intents` needs
no language model.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np

from prompts.intents import KIND, Intent, IntentKind, Intents, IntentSplit
from sft.endpoint_intents.answer_log import AnswerLog
from sft.endpoint_intents.answers import usable_texts
from sft.endpoint_intents.endpoint import Endpoint, RequestOptions
from sft.endpoint_intents.prompts import SHIPPED, EndpointPrompts
from sft.endpoint_intents.questions import Question, QuestionWriter
from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact, writing
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass
class GenerateArguments:
    """Arguments of `sft.generate_intents`."""

    sid_dir: str = field(metadata={"help": "directory written by sid_builder.build"})
    base_url: str = field(metadata={"help": "endpoint, up to and including /v1"})
    model: str = field(metadata={"help": "name the endpoint serves the model under"})
    output_dir: str = field(metadata={"help": "directory of intents to write"})
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "environment variable with the key, if one is needed"}
    )
    kinds: list[str] = field(
        default_factory=lambda: ["query"],
        metadata={
            "help": "query: requests for an item; intention: what a user was after before a train "
            "choice; preference: a user's taste"
        },
    )
    items: int = field(default=0, metadata={"help": "ask about a sample of this many items; 0: all"})
    users: int = field(default=0, metadata={"help": "ask about a sample of this many users; 0: all"})
    per_item: int = field(default=3, metadata={"help": "requests per item"})
    per_user: int = field(default=1, metadata={"help": "newest train choices per user; 0: all of them"})
    held_out: float = field(
        default=0.1, metadata={"help": "share of the requests that goes to valid, and as much to test"}
    )
    prompts: str | None = field(
        default=None, metadata={"help": f"YAML with the words the model is asked in; default: {SHIPPED.name}"}
    )
    concurrency: int = field(default=8, metadata={"help": "questions under way at a time"})
    request: RequestOptions = field(
        default_factory=RequestOptions, metadata={"help": "timeout, retries, further fields of the body"}
    )
    seed: int = field(default=0, metadata={"help": "of the samples and of what is held out"})
    overwrite: bool = field(default=False, metadata={"help": "replace intents that exist already"})

    def check(self) -> None:
        """Everything that can be known before anybody is asked."""
        for name, least in (("items", 0), ("users", 0), ("per_item", 1), ("per_user", 0), ("concurrency", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        if not 0 <= self.held_out < 0.5:
            raise InputError(f"held_out: {self.held_out}; give a share of at least 0 and below 0.5")
        unknown = [kind for kind in self.kinds if kind not in get_args(IntentKind)]
        if unknown or not self.kinds:
            raise InputError(
                f"kinds: {self.kinds}; name at least one of {list(get_args(IntentKind))}, no other"
            )
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"base_url: {self.base_url!r}; give a URL such as http://127.0.0.1:8000/v1")
        if find_spec("openai") is None:
            raise InputError("openai: is not installed; pip install 'sidereal[cpu]' or 'sidereal[vllm]'")
        open_artifact(self.sid_dir, "sids")
        check_output(Path(self.output_dir), self.overwrite)

    @property
    def log_path(self) -> Path:
        output = Path(self.output_dir).absolute()
        return output.parent / f".{output.name}.work" / "answers.jsonl"


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(GenerateArguments, argv, description=__doc__)
    prompts = EndpointPrompts.load(args.prompts)
    sids, output_dir = Path(args.sid_dir), Path(args.output_dir)
    index = SidIndex.load(sids / "sid_index")
    interactions = Interactions.load(sids / "interactions")
    questions = list(questions_of(args, QuestionWriter(index, interactions, prompts, args.seed)))
    if not questions:
        raise InputError(f"kinds: {sids} has nothing to ask about for {args.kinds}; choose other kinds")
    api_key = os.environ.get(args.api_key_env) or "none"  # a local server asks for no key
    endpoint = Endpoint(args.base_url, args.model, api_key, args.api_key_env, args.request)
    with AnswerLog(args.log_path) as log:
        print(f"sft.generate_intents: {len(questions):,} questions; answers are kept in {args.log_path}")
        unanswered = endpoint.ask_all(questions, log, args.concurrency)
        answers = log.rows

    dropped: Counter[str] = Counter()
    kept: list[Intent] = []
    for question in questions:
        answer = answers.get(question.key(args.model, args.request.body))
        if answer is not None:
            kept += intents_of(question, answer, prompts, index.catalog.titles, args, dropped)
    summary = {
        "questions": len(questions),
        "unanswered": unanswered,
        "intents": dict(Counter(f"{intent.kind} {intent.split}" for intent in kept)),
        "dropped": dict(dropped),
    }
    if not kept:
        raise InputError(
            f"model: no answer of {args.model!r} can be used (dropped: {summary['dropped']}); see "
            f"{args.log_path}"
        )
    inputs: dict[str, str | Path] = {"sids": sids, "prompts": args.prompts or SHIPPED}
    seeds = {"seed": args.seed}
    with writing(output_dir, KIND, 1, args, inputs, seeds, args.overwrite) as artifact:
        Intents.of(kept, index.catalog).write(artifact.path)
        artifact.summary.update(summary)
    print(f"sft.generate_intents: wrote {len(kept):,} intents to {output_dir} {summary['intents']}")
    print(f"dropped: {summary['dropped'] or 'nothing'}")
    if unanswered:
        print(f"{unanswered} questions stayed unanswered; --overwrite true asks these again")


def questions_of(args: GenerateArguments, writer: QuestionWriter) -> Iterator[Question]:
    """All questions of a run, kind by kind."""
    for kind in dict.fromkeys(args.kinds):
        if kind == "query":
            yield from writer.about_items(args.items, args.per_item)
        elif kind == "intention":
            yield from writer.about_cases(args.users, args.per_user)
        else:
            yield from writer.about_users(args.users)


def intents_of(
    question: Question,
    answer: dict,
    prompts: EndpointPrompts,
    titles: Sequence[str],
    args: GenerateArguments,
    dropped: Counter[str],
) -> Iterator[Intent]:
    """What an answer is worth: an intent per usable text.

    Requests are about the catalogue, and each is train's, valid's or test's by a draw of its own. Intentions
    and preferences are made of train's interactions and stay with train.
    """
    hidden = [titles[item] for item in question.hidden] if prompts.title_rule else []
    texts = usable_texts(answer, question.number, prompts.max_words, hidden, dropped)
    # Drawn by item: a run over more items leaves the split of those it had.
    draws = np.random.default_rng([args.seed, max(question.item, 0)]).random(question.number)
    for text, draw in zip(texts, draws, strict=False):
        split: IntentSplit = "train"
        if question.kind == "query" and draw < 2 * args.held_out:
            split = "valid" if draw < args.held_out else "test"
        yield Intent(
            kind=question.kind,
            turns=(text,),
            item=question.item,
            history=question.history,
            user=question.user,
            split=split,
        )


if __name__ == "__main__":
    cli.run(main)
