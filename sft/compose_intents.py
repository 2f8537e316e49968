"""Compose requests in words from a catalogue and its train interactions, without a language model.

    python -m sft.compose_intents --sid_dir out/toy/sids --output_dir out/toy/intents
    python -m sft.compose_intents --sid_dir out/beauty/sids --reviews reviews.json.gz --output_dir out/intents

Queries say what is true of an item ("a waterproof mascara under 10 dollars, not brown"), alone or refined
over turns ("cheaper", "not that brand"); intentions stand behind a history; preferences are users' tastes.
What a query states is kept as data (`wanted`), so that an answer can be judged by whether it fits.
`--imports` adds intents that others wrote: our JSONL, or LC-Rec's `.user.json`.

What is held out: single queries, half of them in frames that train never uses, while an item's others stay in
train; and all queries of a few items, which train asks for in no words at all. Intentions and preferences of
valid and test belong to the valid and test cases of their users; those of train read train alone.
`sft.train --intents OUTPUT_DIR` learns from the result, `serve.evaluate_search --intents OUTPUT_DIR` ranks
it, and `sample.md` in it is for people to read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from prompts.intents import KIND, Intent, Intents, IntentSplit, write_parts
from prompts.wanted import Shelf
from sft.intents.facts import CatalogFacts
from sft.intents.lcrec_texts import SUFFIX, lcrec_intents
from sft.intents.overview import Overview
from sft.intents.refinements import conversation
from sft.intents.requests import RequestWriter, drawn_split
from sft.intents.reviews import TrainPairs, review_requests
from sft.intents.tastes import intentions, newest_cases, preferences
from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact, writing
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex

_CHUNK = 1 << 15  # intents in memory at a time
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
        default=None,
        metadata={"help": "Amazon's reviews (JSONL, .gz) or NAME.review.json: sentences become requests"},
    )
    reviews_per_item: int = field(default=4, metadata={"help": "requests from reviews per item, at most"})
    imports: list[str] = field(
        default_factory=list, metadata={"help": "intents to add: JSONL, or LC-Rec's NAME.user.json"}
    )
    held_out: float = field(
        default=0.05, metadata={"help": "share of the queries that goes to valid, and as many to test"}
    )
    held_out_items: float = field(
        default=0.02, metadata={"help": "share of the items whose queries are all of valid or test"}
    )
    seed: int = field(default=0, metadata={"help": "of all draws"})
    overwrite: bool = field(default=False, metadata={"help": "replace intents that exist already"})

    def check(self) -> None:
        open_artifact(self.sid_dir, "sids")
        check_output(Path(self.output_dir), self.overwrite)
        for name in ("per_item", "conversations", "reviews_per_item"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)}; give 0 or more")
        for name in ("held_out", "held_out_items"):
            if not 0 <= getattr(self, name) < 0.5:
                raise InputError(f"{name}: {getattr(self, name)}; give a share of at least 0 and below 0.5")
        for name, path in [("reviews", self.reviews), *(("imports", path) for path in self.imports)]:
            if path is not None and not Path(path).is_file():
                raise InputError(f"{name}: {path} is no file; check the path")


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(ComposeArguments, argv, description=__doc__)
    sids = open_artifact(args.sid_dir, "sids").path
    index, interactions = SidIndex.load(sids / "sid_index"), Interactions.load(sids / "interactions")
    catalog = index.catalog
    writer = RequestWriter(CatalogFacts(catalog), Shelf(catalog, index.live_N))
    overview = Overview(args.seed)
    inputs: dict[str, str | Path] = {"sids": sids}
    inputs |= {"reviews": args.reviews} if args.reviews else {}
    inputs |= {f"imports_{number}": path for number, path in enumerate(args.imports)}
    with writing(args.output_dir, KIND, 1, args, inputs, {"seed": args.seed}, args.overwrite) as artifact:
        found = overview.watched(composed(args, index, interactions, writer))
        chunks = iter(lambda: list(islice(found, _CHUNK)), [])
        write_parts((Intents.of(chunk, catalog) for chunk in chunks), artifact.path)
        if not overview.counts:
            raise InputError(
                f"sid_dir: {args.sid_dir}: nothing can be composed from its items and nothing is imported; "
                "its items need titles"
            )
        artifact.summary.update(overview.summary(writer.shelf))
        (artifact.path / "sample.md").write_text(overview.page(catalog), encoding="utf-8")
        summary = artifact.summary
    for line in overview.lines(catalog, 2):
        print(f"  {line}")
    print(f"sft.compose_intents: wrote {overview.total:,} intents to {args.output_dir} {summary['intents']}")
    share, median = summary["share_with_one_answer"], summary["median_fitting"]
    print(f"queries with constraints: {share:.0%} have one answer, the median has {median:g}")


def composed(
    args: ComposeArguments, index: SidIndex, interactions: Interactions, writer: RequestWriter
) -> Iterator[Intent]:
    """All intents of a run. Every item and every sequence has a random stream of its own."""
    for item in tqdm(np.flatnonzero(index.live_N).tolist(), desc="requests", unit="item", disable=None):
        rng = np.random.default_rng([args.seed, 0, item])
        held_out = 0.5 if rng.random() < args.held_out_items else args.held_out
        yield from writer.requests(item, args.per_item, rng, held_out)
        for _ in range(args.conversations):
            talk = conversation(writer, item, drawn_split(rng, held_out), rng)
            if talk is not None:
                yield talk
    if args.users:
        for split in _SPLITS:
            cases = newest_cases(index, interactions, split)
            yield from intentions(writer, cases, split, args.seed)
            yield from preferences(writer.facts, cases, split, args.seed)
    if args.reviews:
        yield from _from_reviews(args, Path(args.reviews), index, interactions, writer)
    for path in map(Path, args.imports):
        if path.name.endswith(SUFFIX):
            yield from lcrec_intents(path, index.catalog)
        else:
            yield from Intents.load(path, index.catalog)


def _from_reviews(
    args: ComposeArguments, path: Path, index: SidIndex, interactions: Interactions, writer: RequestWriter
) -> Iterator[Intent]:
    taken: Counter[int] = Counter()
    pairs = TrainPairs(interactions, index.catalog.item_ids)
    rng = np.random.default_rng([args.seed, 3])
    told = review_requests(path, pairs, writer.facts)
    for item, text in tqdm(told, desc="reviews", unit="sentence", disable=None):
        if taken[item] < args.reviews_per_item and index.live_N[item]:
            taken[item] += 1
            yield Intent("query", (text,), item, split=drawn_split(rng, args.held_out))


if __name__ == "__main__":
    cli.run(main)
