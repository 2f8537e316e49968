"""A model directory opened for decoding: model, tokenizer, SID index and template that agree."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prompts.opening import open_template
from prompts.template import PromptTemplate
from serve.decoding.trie_step import DeviceTrie
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


@dataclass
class Recommender:
    """Everything a self-contained model directory holds. `path` is None for a model still in training."""

    model: Any
    tokenizer: Any
    index: SidIndex
    template: PromptTemplate
    path: Path | None = None

    @cached_property
    def trie(self) -> DeviceTrie:
        return DeviceTrie(self.index.trie, self.template.vocabulary, self.model.device)

    @cached_property
    def interactions(self) -> Interactions:
        """The interactions the model directory carries, for evaluation and RL."""
        assert self.path is not None, "a model in training has no directory"
        return load_interactions(self.path)

    @staticmethod
    def load(model_dir: str | Path, device: str | None = None, dtype: str = "auto") -> "Recommender":
        """Open a model directory.

        Args:
            device: "cpu", "cuda", ...; None picks a GPU when there is one.
            dtype: "auto" (as saved), "float32", "bfloat16", ...

        Raises:
            InputError: when the directory is incomplete or truncated, or tokenizer and index disagree.
        """
        path, template = Path(model_dir), open_template(model_dir)
        from transformers import AutoModelForCausalLM

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        rows = model.get_input_embeddings().weight.shape[0]
        highest = int(template.vocabulary.all_ids.max())
        if highest >= rows:
            raise InputError(
                f"{path}: token id {highest} is beyond the model's {rows} embedding rows; merge again"
            )
        return Recommender(model.to(device).eval(), template.tokenizer, template.index, template, path)


def load_interactions(directory: Path) -> Interactions:
    """The interactions of a model or SID directory; InputError when it was published without them."""
    if not (directory / "interactions").is_dir():
        raise InputError(
            f"{directory}: carries no interactions/; copy them from the SID directory it was trained on"
        )
    return Interactions.load(directory / "interactions")
