"""Preferences on disk: an artefact of kind "preferences".

preferences.parquet   a row per set: token ids, which is all that training reads, and for people item ids,
                      ranks in the beam (from 0; -1: not in it) and sources
sample.md             some of the sets with titles
manifest.json         options and counts, and what the token ids mean (`meaning_of_ids`)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prompts.template import PromptTemplate
from rl.preference_options import PREFERENCES_KIND
from rl.preference_sets import PreferenceSet
from sid_builder.artifact import Artifact, open_artifact, to_json
from sid_builder.errors import InputError

FILE = "preferences.parquet"
_ROWS_A_GROUP = 4096
_SHOWN = 20
_IDS, _NAMES = pa.list_(pa.int32()), pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        pa.field("prompt_ids", _IDS),
        pa.field("chosen_ids", _IDS),
        pa.field("rejected_ids", pa.list_(_IDS)),
        pa.field("history", _NAMES),
        pa.field("chosen", pa.string()),
        pa.field("chosen_rank", pa.int32()),
        pa.field("rejected", _NAMES),
        pa.field("rejected_ranks", _IDS),
        pa.field("sources", _NAMES),
    ]
)
_TRAINED_ON = ["prompt_ids", "chosen_ids", "rejected_ids"]


def meaning_of_ids(template: PromptTemplate) -> dict[str, str]:
    """sha256 of what token ids stand for: the items' SIDs, the vocabulary, the frame and words of prompts."""
    index, digests = template.index, {}
    items = hashlib.sha256("\n".join(index.catalog.item_ids).encode())
    items.update(np.ascontiguousarray(index.semantic_ids.codes_NL, dtype="<i4").tobytes())
    digests["index"] = items.hexdigest()
    asked = {"pack": to_json(template.pack), "chat_template": template.tokenizer.chat_template}
    for name, content in (("vocabulary", template.tokenizer.get_vocab()), ("prompts", asked)):
        digests[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return digests


def write_sets(sets: Iterable[PreferenceSet], template: PromptTemplate, artifact: Artifact) -> None:
    """Write sets as they come into an artefact that the caller is writing.

    Raises:
        InputError: when there is none.
    """
    ids, counts, firsts = template.index.catalog.item_ids, Counter[str](), 0
    sets, total = iter(sets), 0
    with pq.ParquetWriter(artifact.path / FILE, SCHEMA, compression="zstd") as writer:
        while chunk := list(islice(sets, _ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist([_row(made, ids) for made in chunk], SCHEMA))
            total += len(chunk)
            counts.update(answer.source for made in chunk for answer in made.rejected)
            firsts += sum(made.rejected[0].rank == 0 for made in chunk)
    if not total:
        raise InputError(
            "negatives: no prompt gave a preference; unset only_hits, raise num_beams, or choose rewards "
            "that tell beams apart"
        )
    artifact.summary.update(
        sets=total,
        rejected=dict(sorted(counts.items())),
        rejected_first=firsts / total,
        meaning_of_ids=meaning_of_ids(template),
    )
    page = "\n".join(_page(artifact.path, template, total))
    (artifact.path / "sample.md").write_text(page, encoding="utf-8")


def told(artifact: Artifact) -> str:
    """The summary in one line."""
    summary = artifact.summary
    sources = ", ".join(f"{count:,} by {name}" for name, count in summary["rejected"].items())
    return (
        f"{summary['sets']:,} sets from {summary['prompts']:,} prompts, rejected: {sources}; the rejected "
        f"item stood first in {summary['rejected_first']:.1%}"
    )


def open_preferences(path: str | Path, template: PromptTemplate) -> datasets.Dataset:
    """Rows `prompt_ids`, `chosen_ids`, `rejected_ids` (a list of answers), to train the model of `template`.

    Raises:
        InputError: when the artefact is incomplete, or was made for another index, vocabulary or prompts.
    """
    artifact = open_artifact(path, PREFERENCES_KIND)
    check_same_meaning(artifact.summary["meaning_of_ids"], template, f"preferences: {path} were made")
    return datasets.Dataset(pq.read_table(artifact.path / FILE, columns=_TRAINED_ON))


def check_same_meaning(meaning: dict[str, str], template: PromptTemplate, what: str) -> None:
    """InputError beginning with `what` if any of these digests is another one in the model of `template`."""
    ours = meaning_of_ids(template)
    other = [name for name in meaning if meaning[name] != ours[name]]
    if other:
        raise InputError(
            f"{what} with another {other[0]} than the model to train has; make it with this model, or one "
            "trained from it"
        )


def _row(made: PreferenceSet, ids: list[str]) -> dict[str, Any]:
    return {
        "prompt_ids": made.prompt_ids,
        "chosen_ids": made.chosen.token_ids,
        "rejected_ids": [answer.token_ids for answer in made.rejected],
        "history": [ids[item] for item in made.history],
        "chosen": ids[made.chosen.item],
        "chosen_rank": made.chosen.rank,
        "rejected": [ids[answer.item] for answer in made.rejected],
        "rejected_ranks": [answer.rank for answer in made.rejected],
        "sources": [answer.source for answer in made.rejected],
    }


def _page(directory: Path, template: PromptTemplate, total: int) -> Iterator[str]:
    """A sample of what was written, drawn evenly, as Markdown."""
    yield f"# A sample of the {total:,} preference sets\n"
    numbers = np.unique(np.linspace(0, total - 1, _SHOWN).astype(np.int64))
    catalog, spell = template.index.catalog, template.index.semantic_ids.spell

    def named(item_id: str) -> str:
        return catalog.titles[catalog.item_index(item_id)] or item_id

    def line(word: str, item_id: str, rank: int, source: str) -> str:
        place = f"rank {rank + 1} of the beam" if rank >= 0 else "not in the beam"
        sid = spell(catalog.item_index(item_id))
        return f"- {word}: **{named(item_id)}** `{sid}` ({source}; {place})"

    rows = pq.read_table(directory / FILE, columns=SCHEMA.names[3:]).take(numbers).to_pylist()
    for number, row in zip(numbers.tolist(), rows, strict=True):
        earlier = f"{len(row['history']) - 5} more, " if len(row["history"]) > 5 else ""
        yield f"## {number + 1}. After {earlier}{', '.join(map(named, row['history'][-5:]))}\n"
        yield line("chosen", row["chosen"], row["chosen_rank"], "preferred")
        for answer in zip(row["rejected"], row["rejected_ranks"], row["sources"], strict=True):
            yield line("rejected", *answer)
        yield ""
