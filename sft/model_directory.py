"""Writing self-contained model directories: weights, tokenizer, template pack, `sid_index/` and
`interactions/`.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prompts.opening import MODEL_KIND
from prompts.pack import PromptPack
from prompts.template import PACK_FILE
from sft.model_card import write_card
from sid_builder.artifact import writing
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


def write_model_directory(
    path: str | Path,
    model: Any,
    tokenizer: Any,
    pack: PromptPack,
    index: SidIndex,
    interactions: Interactions | Path | None,
    config: Any = None,
    inputs: dict[str, str | Path] | None = None,
    seeds: dict[str, int] | None = None,
    overwrite: bool = False,
    save_weights: Callable[[Path], None] | None = None,
    run: Mapping[str, Any] | None = None,
) -> None:
    """Write an artefact of kind "model" that `rl`, `serve` and evaluation open by its path alone.

    Args:
        interactions: to carry along, perhaps as saved in a directory, or None (such a model can be served,
            not evaluated).
        save_weights: writes weights and config into a directory, where `model` is but their shape; else the
            model does.
        run: summary of the run the model comes from, kept with its own.
    """
    with writing(
        path, MODEL_KIND, config=config, inputs=inputs, seeds=seeds, overwrite=overwrite
    ) as artifact:
        save_parts(artifact.path, tokenizer, pack, index, interactions)
        (save_weights or model.save_pretrained)(artifact.path)
        artifact.summary.update(
            run or {},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            items=index.catalog.num_items,
            architecture=type(model).__name__,
        )
        write_card(artifact.path, Path(path).name, config or {}, artifact.summary)


def save_parts(
    directory: Path,
    tokenizer: Any,
    pack: PromptPack,
    index: SidIndex,
    interactions: Interactions | Path | None,
) -> None:
    """Everything of a model directory except the weights."""
    if pack.chat_template is not None:
        tokenizer.chat_template = pack.chat_template
    tokenizer.save_pretrained(directory)
    pack.save(directory / PACK_FILE)
    index.save(directory / "sid_index")
    if isinstance(interactions, Interactions):
        (directory / "interactions").mkdir()
        interactions.save(directory / "interactions")
    elif interactions is not None:
        shutil.copytree(interactions, directory / "interactions")
