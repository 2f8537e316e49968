"""Compose requests in words from a catalogue and its train interactions, without a language model.

    python -m sft.compose_intents --sid_dir out/toy/sids --output_dir out/toy/intents
    python -m sft.compose_intents --sid_dir out/beauty/sids --reviews reviews.json.gz --output_dir out/intents

Queries say what is true of an item ("a waterproof mascara under 10 dollars, not brown"), alone or refined
over turns ("cheaper", "not that brand"); intentions stand behind a history; preferences are users' tastes.
What a query states is kept as data (`wanted`), so that an answer can be judged by whether it fits.
`--imports` adds intents that others wrote: our JSONL, or LC-Rec's `.user.json`.

Queries are held out one by one: an item's others stay in train, so valid and test ask for known items. Short
ones may be worded as a train query of another item is (a third of them on Beauty). Intentions of valid and
test belong to the valid and test cases; train reads train alone.
`sft.train --intents OUTPUT_DIR` learns from the result, `serve.evaluate_search --intents OUTPUT_DIR` ranks
it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from prompts.intents import KIND, SCHEMA, Intent, Intents, IntentSplit
from prompts.wanted import Shelf
from sft.intents.facts import CatalogFacts
from sft.intents.lcrec_texts import SUFFIX, lcrec_intents
from sft.intents.refinements import conversation
from sft.intents.requests import RequestWriter, drawn_split, query
from sft.intents.reviews import TrainPairs, review_requests
from sft.intents.tastes import intentions, newest_cases, preferences
from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact, writing
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

_CHUNK = 1 << 15
_SPLITS: tuple[IntentSplit, ...] = ("train", "valid", "test")


@dataclass
class ComposeArguments:
    """Arguments of `sft.compose_intents`."""

    sid_dir: str = field(metadata={"help": "directory written by sid_builder.build"})
    output_dir: str = field(metadata={"help": "directory of intents to write"})
    per_item: int = field(default=8, metadata={"help": "requests per item; 0 composes none"})
    conversations: int = field(default=2, metadata={"help": "conversations of two or three turns per item"})
    users: bool = field(default=True, metadata={"help": "compose tastes, and intentions behind histories"})
    reviews: str | None = field(
        default=None, metadata={"help": "Amazon's reviews, JSONL or .gz: sentences become requests"}
    )
    reviews_per_item: int = field(default=4, metadata={"help": "requests from reviews per item, at most"})
    imports: list[str] = field(
        default_factory=list, metadata={"help": "intents to add: JSONL, or LC-Rec's NAME.user.json"}
    )
    held_out: float = field(
        default=0.05, metadata={"help": "share of the queries that goes to valid, and as many to test"}
    )
    seed: int = field(default=0, metadata={"help": "of all draws"})
    overwrite: bool = field(default=False, metadata={"help": "replace intents that exist already"})

    def check(self) -> None:
        open_artifact(self.sid_dir, "sids")
        check_output(Path(self.output_dir), self.overwrite)
        for name in ("per_item", "conversations", "reviews_per_item"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)}; give 0 or more")
        if not 0 <= self.held_out < 0.5:
            raise InputError(f"held_out: {self.held_out}; give a share of at least 0 and below 0.5")
        for name, path in [("reviews", self.reviews), *(("imports", path) for path in self.imports)]:
            if path is not None and not Path(path).is_file():
                raise InputError(f"{name}: {path} is no file; check the path")


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(ComposeArguments, argv, description=__doc__)
    sids = open_artifact(args.sid_dir, "sids").path
    index, interactions = SidIndex.load(sids / "sid_index"), Interactions.load(sids / "interactions")
    facts = CatalogFacts(index.catalog)
    writer = RequestWriter(facts, Shelf(index.catalog, index.live_N))
    counts: Counter[str] = Counter()
    sample: list[Intent] = []
    tables = [SCHEMA.empty_table()]
    found = composed(args, index, interactions, writer)
    while chunk := list(islice(found, _CHUNK)):
        tables.append(Intents.of(chunk, index.catalog).table)
        counts.update(f"{intent.kind} {intent.split}" for intent in chunk)
        sample += [chunk[place] for place in np.random.default_rng(args.seed).integers(0, len(chunk), 12)]
    if not counts:
        raise InputError(f"sid_dir: {args.sid_dir}: its items have no words to compose from, and no imports")
    inputs: dict[str, str | Path] = {"sids": sids}
    inputs |= {"reviews": args.reviews} if args.reviews else {}
    inputs |= {f"imports_{number}": path for number, path in enumerate(args.imports)}
    with writing(args.output_dir, KIND, 1, args, inputs, {"seed": args.seed}, args.overwrite) as artifact:
        Intents(pa.concat_tables(tables), index.catalog).write(artifact.path)
        artifact.summary.update(intents=dict(sorted(counts.items())))
    for intent in sample[:: max(1, len(sample) // 12)][:12]:
        print(f"  {intent.kind}: {_shown(intent, index.catalog.titles)}")
    print(f"sft.compose_intents: wrote {sum(counts.values()):,} intents to {args.output_dir} {dict(counts)}")


def composed(
    args: ComposeArguments, index: SidIndex, interactions: Interactions, writer: RequestWriter
) -> Iterator[Intent]:
    """All intents of a run. Every item and every part has a random stream of its own."""
    for item in tqdm(np.flatnonzero(index.live_N).tolist(), desc="requests", unit="item", disable=None):
        rng = np.random.default_rng([args.seed, 0, item])
        for text, wanted in writer.requests(item, args.per_item, rng):
            yield query(item, text, wanted, drawn_split(rng, args.held_out))
        for _ in range(args.conversations):
            talk = conversation(writer, item, drawn_split(rng, args.held_out), rng)
            if talk is not None:
                yield talk
    if args.users:
        for number, split in enumerate(_SPLITS, start=1):
            cases = newest_cases(index, interactions, split)
            yield from intentions(writer, cases, split, np.random.default_rng([args.seed, number]))
            if split == "train":
                yield from preferences(writer.facts, cases, np.random.default_rng([args.seed, 4]))
    if args.reviews:
        yield from _from_reviews(args, index, interactions, writer)
    for path in map(Path, args.imports):
        if path.name.endswith(SUFFIX):
            yield from lcrec_intents(path, index.catalog)
        else:
            yield from Intents.load(path, index.catalog)


def _from_reviews(
    args: ComposeArguments, index: SidIndex, interactions: Interactions, writer: RequestWriter
) -> Iterator[Intent]:
    taken: Counter[int] = Counter()
    pairs = TrainPairs(interactions, index.catalog.item_ids)
    rng = np.random.default_rng([args.seed, 5])
    told = review_requests(Path(args.reviews or ""), pairs, writer.facts)
    for item, text in tqdm(told, desc="reviews", unit="sentence", disable=None):
        if taken[item] < args.reviews_per_item and index.live_N[item]:
            taken[item] += 1
            yield query(item, text, {}, drawn_split(rng, args.held_out))


def _shown(intent: Intent, titles: list[str]) -> str:
    """An intent in one line, for people to judge."""
    parts = []
    for turn, shown in zip(intent.turns, intent.shown, strict=False):
        parts.append(f"{turn!r} [shown: {titles[shown]}]")
    target = f" -> {titles[intent.item]}" if intent.item >= 0 else ""
    return " ".join([*parts, repr(intent.text)]) + target


if __name__ == "__main__":
    cli.run(main)
