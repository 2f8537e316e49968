"""Command lines of `rl.train_grpo` and `rl.train_dpo`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from prompts.opening import MODEL_KIND
from rl import REWARDS
from rl.launch import check_sharding
from rl.preference_options import PREFERENCES_KIND, PreferenceOptions
from rl.rewards.building import check_rewards
from rl.rollout_options import RolloutOptions
from rl.update_options import UpdateOptions
from sft.arguments import LoraOptions, check_4bit, check_counts
from sft.launch import precision_defaults
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError


@dataclass
class PolicyArgs:
    """What GRPO and DPO share: where to start, what to train, which cases to ask, how to judge the result."""

    model_name_or_path: str = field(
        metadata={"help": "merged model directory to start from (sft.merge writes it)"}
    )
    training: Literal["lora", "full"] = field(
        default="full", metadata={"help": "an adapter, merged at the end, or all weights"}
    )
    lora: LoraOptions | None = field(default=None, metadata={"help": "options of training=lora"})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: base weights in nf4 (extra [qlora])"})
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto", metadata={"help": "weights' dtype while training; auto: as saved"}
    )
    max_prompts: int = field(
        default=4000, metadata={"help": "train cases drawn by seed; all if there are fewer"}
    )
    positions: Literal["all", "last"] = field(
        default="all",
        metadata={
            "help": "draw from every train position, or only each user's last (histories as long as in valid)"
        },
    )
    valid_cases: int = field(
        default=1000,
        metadata={
            "help": "valid cases drawn by seed: half of them, ranked before and wherever checkpoints are "
            "saved, choose the best step; the others, ranked before and after, give the verdict (all do "
            "where no step is chosen); 0 turns it off"
        },
    )
    eval_num_beams: int = field(default=50, metadata={"help": "beam width of that ranking"})
    patience: int = field(
        default=0,
        metadata={"help": "stop after this many evaluations without a better NDCG@10; 0: train to the end"},
    )
    keep_start: bool = field(
        default=False,
        metadata={
            "help": "if no step beats the model it starts from, that is the result; false: the best step is, "
            "and the run says so"
        },
    )
    plan: bool = field(
        default=False,
        metadata={
            "help": "say what the run would cost (FLOPs, memory per GPU, hours) and stop: reads the model "
            "directory without its weights, and needs no GPU. The environment variable "
            "ACCELERATE_CONFIG_FILE names the launch file of a machine that is elsewhere"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a finished run in output_dir"})

    def __post_init__(self) -> None:
        if self.training == "lora" and self.lora is None:
            self.lora = LoraOptions(
                dropout=0.0
            )  # dropout in the update, none in the rollout: off-policy for nothing

    def lazy_defaults(self) -> dict[str, bool]:
        """A plan needs no GPU: TRL, which refuses bf16 without one, is told not to look for it."""
        return {"use_cpu": True} if self.plan else precision_defaults()

    def check(self) -> None:
        """Everything that can be known before torch is imported."""
        open_artifact(self.model_name_or_path, MODEL_KIND)
        check_sharding()
        if self.training == "full" and self.lora is not None:
            raise InputError("lora: has no effect with training: full; remove it or set training: lora")
        if self.max_prompts < 1:
            raise InputError(f"max_prompts: {self.max_prompts}; give at least 1")
        check_4bit(self.load_in_4bit, self.training)
        check_counts(valid_cases=self.valid_cases, patience=self.patience)
        if self.eval_num_beams < 50:
            raise InputError(f"eval_num_beams: {self.eval_num_beams}; HR@50 needs at least 50")

    def peft_config(self) -> Any:
        """PEFT's config, or None for full training. Head and embeddings stay as they were merged."""
        return None if self.lora is None else self.lora.config()


@dataclass
class GRPOArguments(PolicyArgs):
    """What sidereal adds to TRL's GRPOConfig."""

    rewards: dict[str, float] = field(
        default_factory=lambda: {"rule": 1.0},
        metadata={
            "help": f"weights of rewards by name, such as {{rule: 1.0, semantic: 0.3}}: {sorted(REWARDS)} or "
            "a path like my.module:reward"
        },
    )
    reward_args: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": "options of a reward, by its name in `rewards`"}
    )
    rollout: RolloutOptions = field(
        default_factory=RolloutOptions, metadata={"help": "where completions come from"}
    )
    update: UpdateOptions = field(
        default_factory=UpdateOptions, metadata={"help": "what a step makes of them"}
    )

    def check(self) -> None:
        super().check()
        check_rewards(self.rewards, self.reward_args)
        self.rollout.check()
        self.update.check()


@dataclass
class DPOArguments(PolicyArgs, PreferenceOptions):
    """What sidereal adds to TRL's DPOConfig."""

    preferences: str | None = field(
        default=None,
        metadata={
            "help": "directory of rl.preferences to train on; without it they are made first, as `negatives` "
            "and the options beside it say, and kept in OUTPUT_DIR.preferences"
        },
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": "model directory that the policy is measured from; default: the model it starts as"
        },
    )
    shared_prompt: bool = field(
        default=True,
        metadata={
            "help": "read a prompt once for all its answers; false: with each, as TRL does; same numbers"
        },
    )

    def check(self) -> None:
        super().check()
        self.check_preferences()
        if self.preferences is not None:
            open_artifact(self.preferences, PREFERENCES_KIND)
        if self.reference is not None:
            open_artifact(self.reference, MODEL_KIND)
