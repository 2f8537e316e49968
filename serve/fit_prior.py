"""Give a model directory a collaborative prior, and the prior the weight that valid likes best.

    python -m serve.fit_prior --model out/beauty/model                              # one-hop counts
    python -m serve.fit_prior ... --kind sasrec --options '{"sasrec": "out/beauty/sasrec"}'
    python -m serve.fit_prior ... --kind my_shop.rules:RulePrior --weight 0.3
    python -m serve.fit_prior ... --new_interactions new.jsonl      # counts add, the weight stays

What is counted comes from train alone. Prints a table and writes `prior/` into the model directory, which
`serve.evaluate --prior` and decoders read. After --new_interactions the prior has counted everything up to
now, what valid and test ask for as well: it is for serving, and evaluation refuses it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serve.decoding.fitted_prior import (
    FOLDER,
    FittedPrior,
    PriorWeights,
    make_prior,
    masses_of,
    prior_options,
    request_features,
)
from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact, to_json
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.new_interactions import join_interactions
from sid_builder.sid_index import SidIndex


@dataclass
class FitPriorArguments:
    """Arguments of `python -m serve.fit_prior`."""

    model: str = field(metadata={"help": "model directory; prior/ is written into it"})
    kind: str = field(
        default="one_hop", metadata={"help": "one_hop, popularity, sasrec or my.module:MyPrior"}
    )
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of the kind, a mapping"})
    weight: float | None = field(
        default=None, metadata={"help": "the prior's weight, 0 to 1; by default learnt on valid"}
    )
    form: Literal["auto", "linear", "log_linear"] = field(
        default="auto",
        metadata={"help": "how model and prior are mixed; auto: by valid, and linear with a given weight"},
    )
    new_interactions: str | None = field(
        default=None,
        metadata={"help": "sequences (jsonl) since; they are added to the prior that is there already"},
    )
    num_beams: int = field(default=50, metadata={"help": "beam width the weight is learnt for"})
    max_cases: int = field(default=5000, metadata={"help": "valid cases it is learnt on; 0: all of them"})
    seed: int = field(default=0, metadata={"help": "seed of their choice and of the halves"})
    batch_tokens: int = field(
        default=4096, metadata={"help": "prompt and beam tokens decoded at once; 64k and more on a GPU"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a prior that is there already"})

    def check(self) -> None:
        """Refuse what cannot be fitted before torch is imported."""
        for name, least in (("num_beams", 1), ("max_cases", 0), ("batch_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise InputError(f"weight: {self.weight} is outside 0..1")
        open_artifact(self.model, "model")
        path = Path(self.model) / FOLDER
        if self.new_interactions is None:
            prior_options(self.kind, self.options)
            check_output(path, self.overwrite)
            return
        if not path.is_dir():
            raise InputError(f"new_interactions: {path} is not there to add to; fit the prior first")
        if not Path(self.new_interactions).is_file():
            raise InputError(f"new_interactions: no file {self.new_interactions}")
        for name, default in (("kind", "one_hop"), ("options", {}), ("weight", None), ("form", "auto")):
            if getattr(self, name) != default:
                raise InputError(
                    f"{name}: {getattr(self, name)!r} has no effect with new_interactions, which keeps what "
                    "was fitted; drop it"
                )


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run the command; returns the summary that the prior's manifest has."""
    (arguments,) = cli.parse(FitPriorArguments, argv, description=__doc__)
    if arguments.new_interactions is not None:
        fitted, summary = add_interactions(arguments)
    else:
        fitted, summary = fit(arguments)
    model_dir = Path(arguments.model)
    replace = arguments.overwrite or arguments.new_interactions is not None
    fitted.save(model_dir, to_json(arguments), summary, replace)
    weights = fitted.weights
    told = f"{weights.form} mixture, weight {' / '.join(f'{weight:g}' for weight in weights.weights)}"
    told += f" by {weights.feature}" if weights.feature != "none" else ""
    print(f"fit_prior: {fitted.kind}, {told}; wrote {model_dir / FOLDER}")
    return summary


def fit(arguments: FitPriorArguments) -> tuple[FittedPrior, dict[str, Any]]:
    """Learn the prior from train, and its weight on valid."""
    from serve.decoding.recommender import Recommender, load_interactions
    from serve.evaluation import prior_fitting
    from serve.evaluation.model_ranking import sample_cases

    model_dir = Path(arguments.model)
    index, interactions = SidIndex.load(model_dir / "sid_index"), load_interactions(model_dir)
    prior = make_prior(arguments.kind, arguments.options, index)
    prior.learn(interactions.only_train())
    forms = prior_fitting.FORMS if arguments.form == "auto" else (arguments.form,)
    if arguments.weight is not None:
        weights = PriorWeights([arguments.weight], forms[0])
        return FittedPrior(arguments.kind, arguments.options, prior, weights, index), {}
    cases = sample_cases(interactions.histories("valid"), arguments.max_cases, arguments.seed)
    if len(cases) < 2:
        raise InputError(f"weight: {arguments.model} has no valid cases to learn it on; give one")
    recommender = Recommender.load(model_dir, arguments.device)
    histories = [cases.history(case) for case in range(len(cases))]
    masses = masses_of(prior, histories)
    ranks = prior_fitting.ranks_by_weight(
        recommender,
        cases,
        masses,
        arguments.num_beams,
        arguments.batch_tokens,
        exclude_history=not interactions.has_repeats,
    )
    features = request_features(histories, masses, index)
    learnt = prior_fitting.learn_weights(ranks, features, arguments.seed, forms)
    print(f"{len(cases)} valid cases; weights are judged on the half they were not learnt on")
    print(prior_fitting.markdown(learnt.table))
    summary = {"valid_cases": len(cases), "table": learnt.table}
    return FittedPrior(arguments.kind, arguments.options, prior, learnt.weights, index), summary


def add_interactions(arguments: FitPriorArguments) -> tuple[FittedPrior, dict[str, Any]]:
    """The model's prior with new interactions added to its counts; kind, options and weight stay."""
    from serve.decoding.recommender import load_interactions

    assert arguments.new_interactions is not None
    model_dir = Path(arguments.model)
    index = SidIndex.load(model_dir / "sid_index")
    fitted = FittedPrior.open(model_dir, index)
    if not fitted.prior.adds:
        raise InputError(f"new_interactions: a prior of kind {fitted.kind!r} cannot add; fit it anew")
    old = fitted.newer or load_interactions(model_dir)
    joined = join_interactions(old, Path(arguments.new_interactions), index.catalog)
    counted_S = np.zeros(joined.whole.num_sequences, dtype=np.int64)
    # A prior that has grown before has counted all of the old ones, else train's.
    counted_S[: old.num_sequences] = old.train_hi_S if fitted.newer is None else np.diff(old.indptr_S1)
    fitted.prior.learn(up_to_now(joined.whole, counted_S))
    print(f"fit_prior: added {joined.num_new} interactions")
    return dataclasses.replace(fitted, newer=joined.whole), {"added": joined.num_new}


def up_to_now(whole: Interactions, counted_S: np.ndarray) -> Interactions:
    """All interactions as train's, of which those behind the first `counted_S` of each sequence are asked
    for; valid and test are empty.
    """
    lengths_S = np.diff(whole.indptr_S1)
    return dataclasses.replace(whole, train_lo_S=counted_S, train_hi_S=lengths_S).only_train()


if __name__ == "__main__":
    cli.run(main)
