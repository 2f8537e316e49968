"""Flags that `serve.evaluate` and `serve.evaluate_search` share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from serve import DECODERS
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions


@dataclass(kw_only=True)
class EvaluationOptions:
    """What is asked, how, and where results go.

    `FEWEST_BEAMS` is the length of the longest list that is judged, `RESULTS` the end of the results' name.
    """

    FEWEST_BEAMS: ClassVar[int]
    RESULTS: ClassVar[str]

    model: str = field(metadata={"help": "model directory"})
    split: Literal["valid", "test"] = field(
        default="test", metadata={"help": "cases to ask; tune on valid, look at test once"}
    )
    num_beams: int = field(
        default=50, metadata={"help": "beam width; no less than the longest list that is judged"}
    )
    decoder: str = field(
        default="tree_beam",
        metadata={"help": "tree_beam, generate (transformers' own, leaves nothing out) or my.module:decode"},
    )
    exclude_history: Literal["auto", "yes", "no"] = field(
        default="auto",
        metadata={"help": "leave given items out of the list; auto: if the data has no repeats"},
    )
    max_cases: int = field(default=0, metadata={"help": "ask a sample of this many cases; 0 asks all"})
    seed: int = field(default=0, metadata={"help": "seed of the sample and of the bootstrap"})
    batch_tokens: int = field(
        default=4096, metadata={"help": "prompt and beam tokens decoded at once; 64k and more on a GPU"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; by default a GPU if there is one"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where results go; by default beside the model, named by it and the split"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace results that exist already"})

    def check_options(self) -> None:
        """InputError for numbers that are too small and a decoder that is none."""
        for name, least in (("num_beams", self.FEWEST_BEAMS), ("batch_tokens", 1), ("max_cases", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        if self.decoder not in DECODERS and ":" not in self.decoder:
            raise InputError(
                f"decoder: {self.decoder!r} is not one of {sorted(DECODERS)} or a path my.module:decode"
            )

    def excludes_history(self, interactions: Interactions) -> bool:
        return {"auto": not interactions.has_repeats, "yes": True, "no": False}[self.exclude_history]

    @property
    def output_path(self) -> Path:
        """`output_dir`, by default <model>_<split>_<RESULTS> beside the model."""
        model = Path(self.model).resolve()
        default = model.parent / f"{model.name}_{self.split}_{self.RESULTS}"
        return Path(self.output_dir) if self.output_dir else default
