"""The prior of a model directory (`prior/`): what was counted, and the weight that valid gave it.

Legend: C cases, B requests, P items with mass of one request.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from serve.decoding.ranking import Form, ItemPrior
from sid_builder import cli
from sid_builder.artifact import open_artifact, write_json, writing
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.priors import PRIORS, Prior
from sid_builder.registry import options_class, resolve
from sid_builder.sid_index import SidIndex

KIND = "prior"
FOLDER = "prior"
Feature = Literal["none", "history_length", "last_item_count", "evidence"]


@dataclass(frozen=True)
class PriorWeights:
    """The prior's weight by a feature of the request, one for all by default.

    Attributes:
        feature: "history_length"; "last_item_count", how often the last item occurs in train; "evidence", the
            sum of the request's masses before they are normalised; "none".
        form: how model and prior are mixed (`prior_mass`).
        edges: ascending; a request is in bucket b if its value is at least edges[b - 1] and below edges[b].
        weights: one for each bucket, 0 to 1.
    """

    weights: list[float]
    form: Form = "linear"
    feature: Feature = "none"
    edges: list[float] = field(default_factory=list)

    def of(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """Weights float64 [C] from `request_features`."""
        return np.array(self.weights, dtype=np.float64)[buckets_of(features, self.feature, self.edges)]


def buckets_of(features: dict[str, np.ndarray], feature: Feature, edges: list[float]) -> np.ndarray:
    """Bucket int64 [C] of each request; "none" has but one."""
    if feature == "none":
        return np.zeros(len(features["history_length"]), dtype=np.int64)
    return np.searchsorted(edges, features[feature], side="right")


def request_features(
    histories: list[np.ndarray], masses: sp.csr_matrix, index: SidIndex
) -> dict[str, np.ndarray]:
    """What a weight may depend on, float64 [C] each: known before the model is asked."""
    last_C = np.array([history[-1] if len(history) else -1 for history in histories], dtype=np.int64)
    return {
        "history_length": np.array([len(history) for history in histories], dtype=np.float64),
        "last_item_count": np.where(last_C >= 0, index.train_counts_N[last_C], 0).astype(np.float64),
        "evidence": np.asarray(masses.sum(axis=1)).ravel().astype(np.float64),
    }


def item_prior(masses: sp.csr_matrix, row: int, weight: float, form: Form = "linear") -> ItemPrior:
    """One row of a prior's masses as a request's prior."""
    low, high = masses.indptr[row], masses.indptr[row + 1]
    items_P = masses.indices[low:high].astype(np.int64)
    return ItemPrior(items_P, masses.data[low:high].astype(np.float64), float(weight), form)


def prior_options(kind: str, options: dict[str, Any]) -> Any:
    """The options of a kind from their mapping, checked.

    Raises:
        InputError: for an unknown kind, unknown options or wrong values.
    """
    made = cli.build_dataclass(options_class(resolve(PRIORS, kind, "kind")), options, "options")
    if hasattr(made, "check"):
        made.check("options")
    return made


def make_prior(kind: str, options: dict[str, Any], index: SidIndex) -> Prior:
    """A prior that has learnt nothing yet; raises as `prior_options` does."""
    return resolve(PRIORS, kind, "kind")(prior_options(kind, options), index)


def masses_of(prior: Prior, histories: list[np.ndarray]) -> sp.csr_matrix:
    """The prior's masses with each row's items ascending and each named once."""
    masses = sp.csr_matrix(prior.masses(histories))
    masses.sum_duplicates()
    return masses


@dataclass(frozen=True)
class FittedPrior:
    """A prior with its weight.

    Attributes:
        kind, options: how it was made, as in the command line.
        newer: the interactions it has counted, where they go beyond the model's own: what valid and test ask
            for is among them, so nothing may be measured with it.
    """

    kind: str
    options: dict[str, Any]
    prior: Prior
    weights: PriorWeights
    index: SidIndex
    newer: Interactions | None = None

    def of_histories(self, histories: list[np.ndarray]) -> list[ItemPrior]:
        """Priors for `tree_beam.decode`, from histories of item indices, oldest first (empty: of nobody)."""
        masses = masses_of(self.prior, histories)
        weight_B = self.weights.of(request_features(histories, masses, self.index))
        return [item_prior(masses, row, weight, self.weights.form) for row, weight in enumerate(weight_B)]

    def save(self, model_dir: Path, config: Any, summary: dict[str, Any], overwrite: bool) -> None:
        """Write `prior/` of a model directory, an artefact of kind "prior"."""
        described = {
            "kind": self.kind,
            "options": self.options,
            "weights": dataclasses.asdict(self.weights),
            "item_ids": _hash_of_items(self.index),
        }
        inputs: dict[str, str | Path] = {"model": model_dir}
        with writing(model_dir / FOLDER, KIND, 1, config, inputs, overwrite=overwrite) as artifact:
            (artifact.path / "learnt").mkdir()
            self.prior.save(artifact.path / "learnt")
            write_json(artifact.path / "prior.json", described)
            if self.newer is not None:
                (artifact.path / "interactions").mkdir()
                self.newer.save(artifact.path / "interactions")
            artifact.summary.update(summary, kind=self.kind, weights=described["weights"])

    @staticmethod
    def open(model_dir: str | Path, index: SidIndex) -> "FittedPrior":
        """Open the prior of a model directory.

        Raises:
            InputError: if there is none, it is incomplete, or it was fitted on other items.
        """
        if not (Path(model_dir) / FOLDER).is_dir():
            raise InputError(f"{model_dir}: has no {FOLDER}/; fit one with python -m serve.fit_prior --model")
        path = open_artifact(Path(model_dir) / FOLDER, KIND).path
        described = json.loads((path / "prior.json").read_text(encoding="utf-8"))
        if described["item_ids"] != _hash_of_items(index):
            raise InputError(f"{path}: was fitted on other items than the model's; fit it again")
        # Not checked again: what the options name may be gone since, its copy is here.
        thing = resolve(PRIORS, described["kind"], "kind")
        options = cli.build_dataclass(options_class(thing), described["options"], "options")
        prior: Prior = thing(options, index)
        prior.load(path / "learnt")
        newer = Interactions.load(path / "interactions") if (path / "interactions").is_dir() else None
        weights = PriorWeights(**described["weights"])
        return FittedPrior(described["kind"], described["options"], prior, weights, index, newer)


def _hash_of_items(index: SidIndex) -> str:
    return hashlib.sha256(json.dumps(index.catalog.item_ids).encode()).hexdigest()
