"""Rank a model's answers to requests in words beside BM25 and a sentence encoder.

    python -m serve.evaluate_search --model out/toy/model --intents out/toy/intents --split valid

The model is asked in the words of its training; the search engines read the item texts. Prints Markdown
tables by kind of request, number of turns and constraint ("under 80 dollars", "not red"), and writes
results.json, table.md and search.png to `--output_dir`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompts.intents import IntentKind, Intents
from serve.evaluation.options import EvaluationOptions
from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact
from sid_builder.embedders.model_files import PACKAGED
from sid_builder.errors import InputError
from sid_builder.item_text import DEFAULT_TEMPLATE, check_template, item_texts

RESULTS_KIND = "search_evaluation"
SEARCHED_KINDS: tuple[IntentKind, ...] = ("query", "intention")  # a preference asks for no item


@dataclass(kw_only=True)
class SearchArguments(EvaluationOptions):
    """What is searched, and how."""

    FEWEST_BEAMS = 10
    RESULTS = "search_results"

    intents: str = field(
        metadata={"help": "requests: a directory of sft.compose_intents or sft.generate_intents, or JSONL"}
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

    def check(self) -> None:
        """Refuse what cannot be evaluated before torch is imported."""
        self.check_options()
        if not self.kinds or set(self.kinds) - set(SEARCHED_KINDS):
            raise InputError(f"kinds: {self.kinds}; name at least one of {list(SEARCHED_KINDS)}, no other")
        check_template(self.text_template)
        open_artifact(self.model, "model")
        if not Path(self.intents).exists():
            raise InputError(f"intents: {self.intents!r} does not exist; run sft.compose_intents first")
        check_output(self.output_path, self.overwrite)


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
    from serve.evaluation import search_report
    from serve.evaluation.results import write_results
    from serve.evaluation.search import check_catalog, model_lists, select_cases
    from serve.evaluation.search_engines import BM25, DENSE, bm25_scores, dense_scores, engine_lists

    recommender = Recommender.load(arguments.model, arguments.device)
    index = recommender.index
    intents = Intents.load(arguments.intents, index.catalog)
    check_catalog(intents, index.catalog, arguments.intents)
    exclude = arguments.excludes_history(recommender.interactions)
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
    figures = {
        **search_report.summarise(systems, cases, fitting(index.catalog, index.live_N), arguments.seed),
        "exclude_history": exclude,
        "num_items": index.trie.num_live,
    }
    return write_results(
        arguments,
        RESULTS_KIND,
        figures,
        inputs={"model": arguments.model, "intents": arguments.intents},
        device=str(recommender.model.device),
        markdown=search_report.markdown,
        picture=search_report.picture,
        picture_file="search.png",
        summary=lambda results: results["slices"][search_report.ALL]["systems"],
    )


if __name__ == "__main__":
    cli.run(main)
