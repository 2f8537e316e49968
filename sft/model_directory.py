"""Writing self-contained model directories: weights, tokenizer, template pack, `sid_index/` and
`interactions/`.
"""

import shutil
from pathlib import Path
from typing import Any

from prompts.opening import MODEL_KIND
from prompts.pack import PromptPack
from prompts.template import PACK_FILE
from sid_builder.artifact import writing
from sid_builder.sid_index import SidIndex


def write_model_directory(
    path: str | Path,
    model: Any,
    tokenizer: Any,
    pack: PromptPack,
    index: SidIndex,
    interactions_dir: Path | None,
    config: Any = None,
    inputs: dict[str, str | Path] | None = None,
    seeds: dict[str, int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an artefact of kind "model" that `rl`, `serve` and evaluation open by its path alone.

    Args:
        interactions_dir: a saved `Interactions` to carry along, or None (such a model can be served, not
        evaluated).
    """
    with writing(
        path, MODEL_KIND, config=config, inputs=inputs, seeds=seeds, overwrite=overwrite
    ) as artifact:
        save_parts(artifact.path, tokenizer, pack, index, interactions_dir)
        model.save_pretrained(artifact.path)
        artifact.summary.update(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            items=index.catalog.num_items,
            architecture=type(model).__name__,
        )


def save_parts(
    directory: Path, tokenizer: Any, pack: PromptPack, index: SidIndex, interactions_dir: Path | None
) -> None:
    """Everything of a model directory except the weights."""
    if pack.chat_template is not None:
        tokenizer.chat_template = pack.chat_template
    tokenizer.save_pretrained(directory)
    pack.save(directory / PACK_FILE)
    index.save(directory / "sid_index")
    if interactions_dir is not None:
        shutil.copytree(interactions_dir, directory / "interactions")
