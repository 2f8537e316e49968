"""A model directory opened without its weights: what the endpoint, its clients and the launcher need."""

from pathlib import Path

from prompts.pack import PromptPack
from prompts.template import PACK_FILE, PromptTemplate
from sid_builder.artifact import open_artifact
from sid_builder.sid_index import SidIndex

MODEL_KIND = "model"


def open_template(model_dir: str | Path) -> PromptTemplate:
    """Tokenizer, SID index and prompt pack of a model directory, bound together; weights stay unread.

    Raises:
        InputError: when the directory is incomplete or truncated, or its tokenizer disagrees with its index.
    """
    path = open_artifact(model_dir, MODEL_KIND).path
    index = SidIndex.load(path / "sid_index")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return PromptTemplate(PromptPack.load(path / PACK_FILE), tokenizer, index)
