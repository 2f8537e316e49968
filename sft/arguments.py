"""Command line of `sft.train`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft import TASKS
from sft.launch import check_sharding, precision_defaults
from sft.models.scratch import ScratchConfig
from sid_builder.errors import InputError

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class LoraOptions:
    """`lora:` in YAML."""

    r: int = field(default=16, metadata={"help": "rank"})
    alpha: int = field(default=32, metadata={"help": "scale; the update is multiplied by alpha / r"})
    dropout: float = field(default=0.05, metadata={"help": "dropout before the down-projection"})
    target_modules: str = field(default="all-linear", metadata={"help": "PEFT's name of the adapted layers"})
    use_dora: bool = field(default=False, metadata={"help": "learn magnitude and direction apart (DoRA)"})
    use_rslora: bool = field(default=False, metadata={"help": "scale by alpha / sqrt(r), for high ranks"})

    def config(self, **beside: Any) -> "LoraConfig":
        """PEFT's configuration of these adapters, and of what is trained `beside` them."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            task_type="CAUSAL_LM",
            **beside,
        )


@dataclass(frozen=True)
class NewTokenOptions:
    """`new_tokens:` in YAML: how the SID tokens' embeddings begin and learn."""

    init: Literal["mean", "text", "codebook"] = field(
        default="mean",
        metadata={
            "help": "mean: around the mean of the old rows; text: mean of the title words of the items under "
            "a code; codebook: the code's centroid, mapped into the embedding space"
        },
    )
    train: Literal["rows", "full"] = field(
        default="rows",
        metadata={"help": "with lora: train only the SID rows of the embeddings, or whole embeddings"},
    )
    warmup_steps: int = field(
        default=0,
        metadata={"help": "first steps in which the SID rows learn alone, before the adapters join"},
    )


@dataclass(frozen=True)
class LayoutOptions:
    """`layout:` in YAML: how examples lie in a batch. The loss is the same in every layout."""

    positions: Literal["all", "windows"] = field(
        default="all",
        metadata={"help": "all: a user's targets share one row as branches; windows: one row per target"},
    )
    batches: Literal["packed", "padded", "padding_free"] = field(
        default="packed",
        metadata={
            "help": "packed: small rows beside each other under a 4-D mask; padded: a row per example; "
            "padding_free: all tokens in one row without a mask (windows only; flash attention on GPUs)"
        },
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = field(
        default="sdpa", metadata={"help": "flash_attention_2 takes no 4-D mask: padding_free only"}
    )


@dataclass(kw_only=True)
class TrainingOptions:
    """How to train, whatever it is that is learnt: what `sft.train` and `sft.refresh` share."""

    training: Literal["lora", "full"] = field(
        default="lora", metadata={"help": "adapters + new rows, or all weights"}
    )
    lora: LoraOptions | None = field(default=None, metadata={"help": "options of training=lora"})
    new_tokens: NewTokenOptions = field(
        default_factory=NewTokenOptions, metadata={"help": "how the SID tokens' embeddings begin and learn"}
    )
    layout: LayoutOptions = field(
        default_factory=LayoutOptions, metadata={"help": "how examples lie in a batch"}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: base weights in nf4 (extra [qlora])"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "weights' dtype"}
    )
    valid_cases: int = field(
        default=0, metadata={"help": "rank this many valid cases at every evaluation step; 0 turns it off"}
    )
    patience: int = field(
        default=0,
        metadata={"help": "stop after this many evaluations without a better NDCG@10; 0: train to the end"},
    )
    plan: bool = field(
        default=False,
        metadata={
            "help": "say what the run would cost (tokens, FLOPs, memory per GPU, hours) and stop: reads the "
            "data, the tokenizer and config.json, no weights, and needs no GPU. The environment variable "
            "ACCELERATE_CONFIG_FILE names the launch file of a machine that is elsewhere"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a finished run in output_dir"})

    def __post_init__(self) -> None:
        if self.training == "lora" and self.lora is None:
            self.lora = LoraOptions()

    def lazy_defaults(self) -> dict[str, Any]:
        """A plan needs no GPU: TRL, which refuses bf16 without one, is told not to look for it."""
        return {"use_cpu": True} if self.plan else precision_defaults()

    def check_training(self) -> None:
        """What can be known of these options before torch is imported."""
        check_4bit(self.load_in_4bit, self.training)
        check_counts(valid_cases=self.valid_cases, patience=self.patience)
        if self.new_tokens.warmup_steps < 0:
            raise InputError(f"new_tokens.warmup_steps: {self.new_tokens.warmup_steps}; give 0 or more")
        layout = self.layout
        if layout.batches == "padding_free" and layout.positions != "windows":
            raise InputError(
                "layout.batches: 'padding_free' has no mask for branches; set layout.positions: windows"
            )
        if layout.attention == "flash_attention_2" and layout.batches != "padding_free":
            raise InputError(
                f"layout.attention: 'flash_attention_2' takes no 4-D mask, which batches: {layout.batches!r} "
                "needs; set layout.batches: padding_free"
            )
        check_sharding(self)


@dataclass(kw_only=True)
class TrainingData:
    """What `sft.train` begins with and learns."""

    sid_dir: str = field(metadata={"help": "directory written by sid_builder.build"})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "checkpoint to extend: hub name or path; leave out with --from_scratch"},
    )
    from_scratch: ScratchConfig | None = field(
        default=None,
        metadata={"help": "build a small decoder from its config and a tokenizer from the catalogue"},
    )
    prompt_pack: str = field(default="chat", metadata={"help": "chat, instruction, plain, or a YAML file"})
    max_history: int | None = field(default=None, metadata={"help": "items in a prompt; default: the pack's"})
    max_prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "prompt budget, to which histories and texts are cut; default: the pack's"},
    )
    task_weights: dict[str, float] | None = field(
        default=None, metadata={"help": "passes over each task's data, e.g. {seqrec: 1.0, title2sid: 2.0}"}
    )
    intents: str | None = field(
        default=None,
        metadata={"help": "requests in words (sft.compose_intents, or JSONL): for itemsearch and its kin"},
    )
    hold_out_last: bool = field(
        default=False,
        metadata={
            "help": "leave each sequence's last train item to RL: on answers learnt by heart, rewards "
            "teach nothing"
        },
    )


@dataclass(kw_only=True)
class SftArguments(TrainingOptions, TrainingData):  # in --help, the flags of the last base come first
    """What sidereal adds to TRL's SFTConfig (whose flags this command takes as well)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_weights is None:
            self.task_weights = {"seqrec": 1.0, "title2sid": 1.0, "sid2title": 1.0}

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
        if self.from_scratch is not None and self.new_tokens.init != "mean":
            raise InputError(
                f"new_tokens.init: {self.new_tokens.init!r} has no trained embeddings to start from with "
                "from_scratch; leave it out"
            )
        if self.from_scratch is not None and self.new_tokens.warmup_steps:
            raise InputError(
                f"new_tokens.warmup_steps: {self.new_tokens.warmup_steps} would teach rows to random weights "
                "of from_scratch; leave it out"
            )
        if not Path(self.sid_dir).is_dir():
            raise InputError(f"sid_dir: {self.sid_dir!r} is no directory; run sid_builder.build first")
        if self.max_history is not None and self.max_history < 1:
            raise InputError(f"max_history: {self.max_history}; at least 1 item is needed")
        if self.intents is not None and not Path(self.intents).exists():
            raise InputError(f"intents: {self.intents!r} does not exist; run sft.compose_intents first")
        self.check_training()
        check_weights(self.task_weights or {})


def check_4bit(load_in_4bit: bool, training: str) -> None:
    """InputError where quantised weights cannot be trained."""
    if load_in_4bit and training != "lora":
        raise InputError("load_in_4bit: quantised weights cannot be trained in full; use training: lora")
    if load_in_4bit and find_spec("bitsandbytes") is None:
        raise InputError("load_in_4bit: bitsandbytes is not installed; pip install 'sidereal[qlora]'")


def check_counts(**counts: int) -> None:
    """InputError for a negative count, by its name."""
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"{name}: {count}; give 0 (off) or more")


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
