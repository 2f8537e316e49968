"""README.md of a model directory: what the model is, what it was trained on and how, how it is served.

A card may be published: it names no user, no path of this machine and none of TRL's settings but those listed
here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from prompts.opening import MODEL_KIND
from sid_builder.artifact import artifact_kind, code_version, open_artifact
from sid_builder.sid_index import SidIndex

CARD_FILE = "README.md"
TAGS = ("sidereal", "generative-recommendation", "semantic-ids")
_STAGES = {
    "sft": "supervised fine-tuning on alignment tasks (sft.train)",
    "refresh": "a refresh on new interactions and new items (sft.refresh)",
    "rl": "preference optimisation on its own rankings (rl)",
    "merge": "another project's training, made into this form (sft.merge)",
}
# Settings that are safe and worth telling: sidereal's, then TRL's.
_OWN = (
    "training",
    "lora",
    "load_in_4bit",
    "dtype",
    "layout",
    "hold_out_last",
    "replay",
    "rewards",
    "valid_cases",
)
_TRLS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "beta",
    "loss_type",
    "num_generations",
    "seed",
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def base_model_of(name_or_path: str | None) -> str | None:
    """Hub name of the language model something was trained from; None where it is not known.

    Args:
        name_or_path: a hub name, a model directory of ours (whose own base is meant), or any other path.
    """
    if name_or_path is None:
        return None
    if Path(name_or_path).exists():
        ours = artifact_kind(name_or_path) == MODEL_KIND
        return open_artifact(name_or_path, MODEL_KIND).summary.get("base_model") if ours else None
    return name_or_path if _HUB_NAME.fullmatch(name_or_path) else None


def write_card(directory: Path, name: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Write the card of a model directory whose other files are there.

    Args:
        config: of the run it came from: its own options under the stage's name, TRL's under "trl".
        summary: of the run and of the model.
    """
    stage = next((stage for stage in _STAGES if stage in config), None)
    options: Mapping[str, Any] = config[stage] if stage else {}
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if summary.get("base_model"):
        front["base_model"] = summary["base_model"]
    front["tags"] = list(TAGS)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}",
        _opening(stage, summary),
        _sids(SidIndex.load(directory / "sid_index"), summary),
        _data(directory / "interactions", summary),
        _training(options, config.get("trl", {})),
        _figures(summary),
        _USE,
        _LIMITS,
    ]
    text = "\n\n".join(part for part in parts if part)
    (directory / CARD_FILE).write_text(text + "\n", encoding="utf-8")


def _opening(stage: str | None, summary: Mapping[str, Any]) -> str:
    base = summary.get("base_model")
    start = f"[{base}](https://huggingface.co/{base})" if base else "a language model without a public name"
    version = code_version()
    made = f"sidereal {version['version']}" + (f" ({version['commit']})" if version["commit"] else "")
    came = f" The last step was {_STAGES[stage]}." if stage else ""
    return (
        f"A generative recommender: it answers a history, or a wish in words, with the semantic IDs of items "
        f"of one catalogue. It goes back to {start}.{came} Written by {made}."
    )


def _table(rows: Mapping[str, Any]) -> str:
    body = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"| | |\n|---|---|\n{body}"


def _sids(index: SidIndex, summary: Mapping[str, Any]) -> str:
    ids, trie = index.semantic_ids, index.trie
    rows = {
        "items": f"{trie.num_live:,} on the shelf, {index.catalog.num_items:,} known",
        "codes per level": " x ".join(str(size) for size in ids.level_sizes),
        "an SID": f"`{ids.spell(0)}`",
        "collision rate (1 - distinct SIDs / items)": f"{1 - trie.num_leaves / trie.num_live:.2%}",
        **{key: f"`{value}`" for key, value in summary.get("sids", {}).items() if value},
    }
    return f"## Semantic IDs\n\n{_table(rows)}"


def _data(interactions: Path, summary: Mapping[str, Any]) -> str:
    rows = {}
    if interactions.is_dir():
        rows["sequences"] = f"{pq.read_metadata(interactions / 'sequences.parquet').num_rows:,}"
        rows["interactions"] = f"{pq.read_metadata(interactions / 'interactions.parquet').num_rows:,}"
    for key in ("new_interactions", "new_users", "new_items", "rows"):
        if key in summary:
            rows["training rows" if key == "rows" else key.replace("_", " ")] = f"{summary[key]:,}"
    return f"## Data\n\n{_table(rows)}" if rows else ""


def _training(options: Mapping[str, Any], trl: Mapping[str, Any]) -> str:
    chosen = {key: _shown(options.get(key)) for key in _OWN} | {key: _shown(trl.get(key)) for key in _TRLS}
    tasks = options.get("task_weights") or {}
    parts = []
    if tasks:
        weights = ", ".join(f"`{task}` {weight:g}" for task, weight in sorted(tasks.items()) if weight)
        parts.append(f"Tasks and their weights (passes over a task's data): {weights}.")
    if any(chosen.values()):
        parts.append(_table({key: value for key, value in chosen.items() if value}))
        parts.append("Settings that are not listed are the defaults of sidereal and TRL.")
    return "## Training\n\n" + "\n\n".join(parts) if parts else ""


def _shown(value: Any) -> str:
    """A setting as text; empty where it is off or says nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(entry) or entry}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value in (None, False, -1) else str(value)


def _figures(summary: Mapping[str, Any]) -> str:
    said = []
    if valid := summary.get("valid"):
        said.append(
            f"- Best {valid['metric'].upper()} on a sample of valid: {valid['best']:.4f} at step "
            f"{valid['best_step']} of {valid['last_step']}. The weights are those of step "
            f"{valid['kept_step']}."
        )
    said += [f"- {summary[key]}" for key in ("refreshed", "verdict") if key in summary]
    if not said:
        return ""
    lines = "\n".join(said)
    return (
        f"## Figures\n\n{lines}\n\nFull catalogue, one target a case. These cases chose between steps or "
        "judged them; `python -m serve.evaluate --split test` asks others."
    )


_USE = """## Use

    python -m serve.launch --model DIRECTORY    # an OpenAI-compatible endpoint on vLLM
    python -m serve.evaluate --model DIRECTORY  # where the interactions are at hand

`sid_index/` holds the catalogue and its SIDs, `prompt_pack.yaml` the prompts the model was trained on.
Without the constraint of the index (plain `generate`) an answer may be no item at all."""

_LIMITS = """## Limits

- It knows the items of its own `sid_index/` only. `sid_builder.assign` gives new ones SIDs, `sft.refresh`
  teaches them.
- It repeats the habits of the interactions it was trained on, popularity and exposure among them.
- It was not tested as a general language model: what the base model could say may have changed.
- The licences of the base model and of the data apply."""
