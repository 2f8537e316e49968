"""Rank a model's answers to requests in words beside BM25 and a sentence encoder.

    python -m serve.evaluate_search --model out/toy/model --intents out/toy/intents --split valid

The model is asked in the words of its training; the search engines read the item texts. Prints Markdown
tables by kind of request, number of turns and constraint ("under 80 dollars", "not red"), and writes
results.json, table.md and search.png to `--output_dir`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prompts.intents import IntentKind, Intents
from serve import DECODERS
from sid_builder import cli
from sid_builder.artifact import (
    check_output,
    code_version,
    hash_inputs,
    open_artifact,
    to_json,
    write_json,
    writing,
)
from sid_builder.embedders.model_files import PACKAGED
from sid_builder.errors import InputError
from sid_builder.item_text import DEFAULT_TEMPLATE, check_template, item_texts

RESULTS_KIND = "search_evaluation"
SEARCHED_KINDS: tuple[IntentKind, ...] = ("query", "intention")  # a preference asks for no item


@dataclass
class SearchArguments:
    """What is searched, and how."""

    model: str = field(metadata={"help": "model directory"})
    intents: str = field(
        metadata={"help": "requests: a directory of sft.compose_intents or sft.generate_intents, or JSONL"}
    )
    split: Literal["valid", "test"] = field(
        default="test", metadata={"help": "requests to answer; tune on valid, look at test once"}
    )
    kinds: list[str] = field(
        default_factory=lambda: list(SEARCHED_KINDS), metadata={"help": "kinds of intents: query, intention"}
    )
    encoder: str = field(
        default=PACKAGED,
        metadata={
            "help": "sentence encoder of the dense engine: directory, hub name, or the packaged MiniLM; take "
            "the one that the SIDs were made with"
        },
    )
    text_template: str = field(
        default=DEFAULT_TEMPLATE, metadata={"help": "item texts that the engines read; as in sid_builder"}
    )
    num_beams: int = field(default=50, metadata={"help": "beam width of the model; at least 10"})
    decoder: str = field(default="tree_beam", metadata={"help": "tree_beam or my.module:decode"})
    exclude_history: Literal["auto", "yes", "no"] = field(
        default="auto",
        metadata={"help": "leave the given history out of the lists; auto: if the data has no repeats"},
    )
    max_cases: int = field(default=0, metadata={"help": "answer a sample of this many requests; 0: all"})
    seed: int = field(default=0, metadata={"help": "seed of the sample and of the bootstrap"})
    batch_tokens: int = field(
        default=4096, metadata={"help": "prompt and beam tokens decoded at once; 64k and more on a GPU"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "by default <model>_<split>_search_results beside the model"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace results that exist already"})

    def check(self) -> None:
        """Refuse what cannot be evaluated before torch is imported."""
        for name, least in (("num_beams", 10), ("batch_tokens", 1), ("max_cases", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        if not self.kinds or set(self.kinds) - set(SEARCHED_KINDS):
            raise InputError(f"kinds: {self.kinds}; name at least one of {list(SEARCHED_KINDS)}, no other")
        if self.decoder not in DECODERS and ":" not in self.decoder:
            raise InputError(
                f"decoder: {self.decoder!r} is not one of {sorted(DECODERS)} or a path my.module:decode"
            )
        check_template(self.text_template)
        open_artifact(self.model, "model")
        if not Path(self.intents).exists():
            raise InputError(f"intents: {self.intents!r} does not exist; run sft.compose_intents first")
        check_output(self.output_path, self.overwrite)

    @property
    def output_path(self) -> Path:
        model = Path(self.model).resolve()
        default = model.parent / f"{model.name}_{self.split}_search_results"
        return Path(self.output_dir) if self.output_dir else default


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the command; returns the content of results.json."""
    (arguments,) = cli.parse(SearchArguments, argv, description=__doc__)
    from serve.evaluation.search_engines import check_engines

    check_engines(arguments.encoder)
    return evaluate(arguments)


def evaluate(arguments: SearchArguments) -> dict[str, Any]:
    """Answer the requests with every system, write the results artefact and print its tables."""
    from prompts.wanted import fitting
    from serve.decoding.recommender import Recommender
    from serve.evaluate import machine
    from serve.evaluation import search_report
    from serve.evaluation.search import check_catalog, model_lists, select_cases
    from serve.evaluation.search_engines import BM25, DENSE, bm25_scores, dense_scores, engine_lists

    recommender = Recommender.load(arguments.model, arguments.device)
    index = recommender.index
    intents = Intents.load(arguments.intents, index.catalog)
    check_catalog(intents, index.catalog, arguments.intents)
    exclude = {"yes": True, "no": False}.get(arguments.exclude_history)
    if exclude is None:
        exclude = not recommender.interactions.has_repeats
    kinds = [kind for kind in SEARCHED_KINDS if kind in arguments.kinds]
    cases = select_cases(intents, kinds, arguments.split, index, arguments.max_cases, arguments.seed, exclude)
    texts = item_texts(index.catalog, arguments.text_template)
    dense = dense_scores(texts, cases.texts, arguments.encoder, arguments.device)
    systems = {
        "model": model_lists(
            recommender, cases, arguments.num_beams, arguments.decoder, arguments.batch_tokens
        ),
        BM25: engine_lists(BM25, bm25_scores(texts, cases.texts), cases, index),
        DENSE: engine_lists(DENSE, dense, cases, index),
    }
    inputs: dict[str, str | Path] = {"model": arguments.model, "intents": arguments.intents}
    results = {
        **search_report.summarise(systems, cases, fitting(index.catalog, index.live_N), arguments.seed),
        "exclude_history": exclude,
        "num_items": index.trie.num_live,
        "config": to_json(arguments),
        "code": code_version(),
        "seeds": {"sample_and_bootstrap": arguments.seed},
        "inputs": hash_inputs(inputs),
        "machine": machine(str(recommender.model.device)),
    }
    table = search_report.markdown(results)
    path = arguments.output_path
    with writing(
        path, RESULTS_KIND, 1, results["config"], inputs, results["seeds"], arguments.overwrite
    ) as artifact:
        write_json(artifact.path / "results.json", results)
        (artifact.path / "table.md").write_text(table, encoding="utf-8")
        search_report.picture(results, artifact.path / "search.png")
        artifact.summary.update(results["slices"][search_report.ALL]["systems"])
    print(table)
    print(f"wrote {path}/results.json, table.md, search.png")
    return results


if __name__ == "__main__":
    cli.run(main)
