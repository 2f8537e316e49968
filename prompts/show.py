"""Show what a model reads and answers under a prompt pack, byte for byte: to hold against prompts you have.

    python -m prompts.show --tokenizer DIR --sid_dir out/beauty/sids --prompt_pack my_pack.yaml --task seqrec
    python -m prompts.show --tokenizer MODEL --sid_dir MODEL --prompt_pack MODEL/prompt_pack.yaml

Prompts and answers are printed as Python literals (a newline is \\n, a trailing blank stands inside the
quotes) with special tokens spelled out, then as token ids. MODEL is a directory of sft.merge.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from prompts.pack import USER_FIELDS, PromptPack
from prompts.template import PromptTemplate
from sid_builder import cli
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

MOST_CASES = 1000  # looked through for an item that has what a wording refers to


@dataclass
class ShowArguments:
    """What to show."""

    tokenizer: str = field(metadata={"help": "directory or hub name, with or without SID tokens in it"})
    sid_dir: str = field(metadata={"help": "directory of sid_builder.build, or a model directory"})
    prompt_pack: str = field(default="chat", metadata={"help": "chat, instruction, plain, or a YAML file"})
    task: str | None = field(default=None, metadata={"help": "one task; by default all of the pack's"})
    n: int = field(default=1, metadata={"help": "examples of each wording"})
    words: str = field(
        default="something warm and blue",
        metadata={"help": "stands for a query, an intention and a preference"},
    )

    def check(self) -> None:
        if self.n < 1:
            raise InputError(f"n: {self.n}; show at least 1 example")
        if not (Path(self.sid_dir) / "sid_index").is_dir():
            raise InputError(f"sid_dir: {self.sid_dir!r} holds no sid_index/; run sid_builder.build first")
        pack = PromptPack.load(self.prompt_pack)
        if self.task is not None:
            pack.templates(self.task)


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(ShowArguments, argv, description=__doc__)
    index = SidIndex.load(Path(args.sid_dir) / "sid_index")
    template = PromptTemplate(PromptPack.load(args.prompt_pack), _tokenizer(args.tokenizer, index), index)
    cases = list(islice(train_cases(Path(args.sid_dir), index), MOST_CASES))
    for task in [args.task] if args.task else template.pack.tasks:
        for wording in range(len(template.pack.templates(task))):
            print("\n".join(shown(template, task, wording, cases, args.n, args.words)))


def shown(
    template: PromptTemplate,
    task: str,
    wording: int,
    cases: Sequence[tuple[np.ndarray, int]],
    n: int,
    words: str,
) -> list[str]:
    """Lines about the first `n` cases that the wording can be filled with.

    Args:
        cases: history and item, as item indices.
        words: stands for every text of a user.
    """
    wanted = template.pack.templates(task)[wording]
    kind = "held out" if wanted.held_out else "trained"
    texts = dict.fromkeys(sorted(USER_FIELDS & wanted.fields), words)

    def fits(history: np.ndarray, item: int) -> bool:
        return wanted.fields <= {*texts, *template.history_fields(history), *template.item_fields(item)}

    lines: list[str] = []
    for history, item in islice((case for case in cases if fits(*case)), n):
        rendered = template.render(task, item, history, wording, (), **texts)
        lines += [
            f"{task}, wording {wording} ({kind}), item {template.index.catalog.item_ids[item]!r}",
            f"  prompt      {template.tokenizer.decode(rendered.prompt_ids)!r}",
            f"  answer      {template.tokenizer.decode(rendered.completion_ids)!r}",
            f"  prompt ids  {rendered.prompt_ids}",
            f"  answer ids  {rendered.completion_ids}",
        ]
    missing = f"{task}, wording {wording} ({kind}): no item looked at has all of {sorted(wanted.fields)}"
    return lines or [missing]


def train_cases(directory: Path, index: SidIndex) -> Iterator[tuple[np.ndarray, int]]:
    """Histories and next items of train, the shortest histories left out; where there are no interactions,
    items behind those before them in the catalogue.
    """
    if (directory / "interactions").is_dir():
        cases = index.reachable(Interactions.load(directory / "interactions").histories("train"))
        for case in range(len(cases)):
            if cases.position_C[case] > 1:
                yield cases.history(case), int(cases.targets_C[case])
    else:
        for item in range(1, index.catalog.num_items):
            yield np.arange(max(0, item - 3), item), item


def _tokenizer(name: str, index: SidIndex) -> Any:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"tokenizer: {name!r} cannot be opened ({reason})") from error
    tokens = index.semantic_ids.all_tokens()
    if not tokenizer.get_vocab().keys() & set(tokens):  # one of a base model: sft.train would add them
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return tokenizer


if __name__ == "__main__":
    cli.run(main)
