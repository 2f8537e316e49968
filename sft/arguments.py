"""Command line of `sft.train`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sft import TASKS
from sft.models.scratch import ScratchConfig
from sid_builder.errors import InputError


@dataclass(frozen=True)
class LoraOptions:
    """`lora:` in YAML."""

    r: int = field(default=16, metadata={"help": "rank"})
    alpha: int = field(default=32, metadata={"help": "scale; the update is multiplied by alpha / r"})
    dropout: float = field(default=0.05, metadata={"help": "dropout before the down-projection"})
    target_modules: str = field(default="all-linear", metadata={"help": "PEFT's name of the adapted layers"})


@dataclass
class SftArguments:
    """What sidereal adds to TRL's SFTConfig (whose flags this command takes as well)."""

    sid_dir: str = field(metadata={"help": "directory written by sid_builder.build"})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "checkpoint to extend: hub name or path; leave out with --from_scratch"},
    )
    from_scratch: ScratchConfig | None = field(
        default=None,
        metadata={"help": "build a small decoder from its config and a tokenizer from the catalogue"},
    )
    prompt_pack: str = field(default="chat", metadata={"help": "chat, plain, or a YAML file with templates"})
    max_history: int | None = field(default=None, metadata={"help": "items in a prompt; default: the pack's"})
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "prompt budget; default: the pack's"}
    )
    task_weights: dict[str, float] | None = field(
        default=None, metadata={"help": "passes over each task's data, e.g. {seqrec: 1.0, title2sid: 2.0}"}
    )
    hold_out_last: bool = field(
        default=False,
        metadata={
            "help": "leave each sequence's last train item to RL: on answers learnt by heart, rewards "
            "teach nothing"
        },
    )
    training: Literal["lora", "full"] = field(
        default="lora", metadata={"help": "adapters + new rows, or all weights"}
    )
    lora: LoraOptions | None = field(default=None, metadata={"help": "options of training=lora"})
    new_token_training: Literal["rows", "full"] = field(
        default="rows",
        metadata={"help": "with lora: train only the SID rows of the embeddings, or whole embeddings"},
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: base weights in nf4 (extra [qlora])"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "weights' dtype"}
    )
    valid_cases: int = field(
        default=0, metadata={"help": "rank this many valid cases at every evaluation step; 0 turns it off"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a finished run in output_dir"})

    def __post_init__(self) -> None:
        if self.task_weights is None:
            self.task_weights = {"seqrec": 1.0, "title2sid": 1.0, "sid2title": 1.0}
        if self.training == "lora" and self.lora is None:
            self.lora = LoraOptions()

    def check(self) -> None:
        """Everything that can be known before torch is imported."""
        if (self.model_name_or_path is None) == (self.from_scratch is None):
            raise InputError(
                f"model_name_or_path: {self.model_name_or_path!r} with from_scratch "
                f"{self.from_scratch!r}; give exactly one"
            )
        if self.from_scratch is not None and self.training == "lora":
            raise InputError(
                "training: 'lora' would freeze random weights of from_scratch; use training: full"
            )
        if self.load_in_4bit and self.training != "lora":
            raise InputError("load_in_4bit: quantised weights cannot be trained in full; use training: lora")
        if not Path(self.sid_dir).is_dir():
            raise InputError(f"sid_dir: {self.sid_dir!r} is no directory; run sid_builder.build first")
        if self.max_history is not None and self.max_history < 1:
            raise InputError(f"max_history: {self.max_history}; at least 1 item is needed")
        check_weights(self.task_weights or {})


def check_weights(task_weights: Mapping[str, float]) -> None:
    """InputError for an unknown task, a weight that is no non-negative number, or a mixture of nothing."""
    for task, weight in task_weights.items():
        if task not in TASKS and ":" not in task:
            raise InputError(
                f"task_weights: {task!r} is not known; use {sorted(TASKS)} or a path like my.module:examples"
            )
        if not 0 <= weight < float("inf"):
            raise InputError(f"task_weights.{task}: {weight!r}; expected a number of at least 0")
    if not any(task_weights.values()):
        raise InputError(
            f"task_weights: {dict(task_weights)!r} trains nothing; give at least one task a weight above 0"
        )
