"""Command lines of `rl.train_grpo` and `rl.train_dpo`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from prompts.opening import MODEL_KIND
from rl import REWARDS
from sft.arguments import LoraOptions
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from sid_builder.registry import resolve


@dataclass(frozen=True)
class RolloutOptions:
    """`rollout:` in YAML: where the G completions of a prompt come from. All are legal SIDs."""

    mode: Literal["beam", "sample", "mixed"] = field(
        default="beam",
        metadata={
            "help": "beam: the G best SIDs, distinct; sample: G draws under the trie; mixed: a beam, and "
            "`sampled` of the group drawn from what it left out"
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "of the draws"})
    sampled: float = field(default=0.5, metadata={"help": "share of a mixed group that is drawn"})
    oversample: float = field(
        default=1.0,
        metadata={
            "help": "dynamic rollouts: candidates per completion, of which G are selected (MiniOneRec: 1.5)"
        },
    )
    add_ground_truth: bool = field(
        default=False, metadata={"help": "the truth replaces the last completion of a group without a hit"}
    )
    idle_groups: Literal["keep", "skip", "resample"] = field(
        default="keep",
        metadata={
            "help": "groups whose rewards are all equal teach nothing: kept (TRL), left out of the mean, or "
            "replaced by groups of other prompts"
        },
    )


@dataclass(frozen=True)
class UpdateOptions:
    """`update:` in YAML: what a step does with a group's rewards, beside TRL's loss_type, beta, epsilon."""

    advantages: Literal["group", "pass_at_k"] = field(
        default="group",
        metadata={"help": "group: TRL's (scale_rewards); pass_at_k: of sets of `k` completions"},
    )
    k: int = field(default=4, metadata={"help": "of pass_at_k"})
    log_probs: Literal["vocabulary", "trie"] = field(
        default="vocabulary",
        metadata={"help": "softmax over the whole vocabulary, or over the trie's children of each prefix"},
    )
    truth_weight: float = field(
        default=0.0, metadata={"help": "weight of the cross-entropy of the truth, added to the loss"}
    )
    shared_prompt: bool = field(
        default=True,
        metadata={
            "help": "read a group's prompt once in the training step; false takes TRL's layout, same numbers"
        },
    )


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
            "help": "valid cases ranked before, at every evaluation step and after, for the verdict and the "
            "best step; 0 turns it off"
        },
    )
    eval_num_beams: int = field(default=50, metadata={"help": "beam width of that ranking"})
    patience: int = field(
        default=0,
        metadata={"help": "stop after this many evaluations without a better NDCG@10; 0: train to the end"},
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
        return {"use_cpu": True} if self.plan else {}

    def check(self) -> None:
        """Everything that can be known before torch is imported."""
        open_artifact(self.model_name_or_path, MODEL_KIND)
        if self.training == "full" and self.lora is not None:
            raise InputError("lora: has no effect with training: full; remove it or set training: lora")
        if self.max_prompts < 1:
            raise InputError(f"max_prompts: {self.max_prompts}; give at least 1")
        if self.valid_cases < 0:
            raise InputError(f"valid_cases: {self.valid_cases}; give 0 (no verdict) or more")
        if self.eval_num_beams < 10:
            raise InputError(f"eval_num_beams: {self.eval_num_beams}; NDCG@10 needs at least 10")

    def peft_config(self) -> Any:
        """PEFT's config, or None for full training. Head and embeddings stay as they were merged."""
        if self.lora is None:
            return None
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora.r,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=self.lora.target_modules,
            task_type="CAUSAL_LM",
        )


@dataclass
class GRPOArguments(PolicyArgs):
    """What sidereal adds to TRL's GRPOConfig."""

    rewards: dict[str, float] = field(
        default_factory=lambda: {"rule": 1.0},
        metadata={"help": "weights of rewards by name (rl.REWARDS) or path like my.module:reward"},
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
        if not self.rewards:
            raise InputError(f"rewards: empty; name at least one of {sorted(REWARDS)}")
        for name in self.rewards:
            resolve(REWARDS, name, "rewards")


@dataclass
class DPOArguments(PolicyArgs):
    """What sidereal adds to TRL's DPOConfig."""

    num_beams: int = field(default=16, metadata={"help": "width of the beam that rejected answers come from"})
    num_negatives: int = field(
        default=1, metadata={"help": "rejected answers per prompt, each a pair of its own"}
    )
    only_hits: bool = field(
        default=False,
        metadata={"help": "only prompts whose beam holds the truth: the pairs teach order, not recall"},
    )

    def check(self) -> None:
        super().check()
        if not 1 <= self.num_negatives < self.num_beams:
            raise InputError(
                f"num_negatives: {self.num_negatives}; need at least 1, fewer than num_beams {self.num_beams}"
            )
