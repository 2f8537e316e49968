"""`rollout:` in YAML, and what TRL's flags may say beside it."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sid_builder.errors import InputError

# Flags of TRL's GRPOConfig about its own ways of generating, none of which is used.
_NOT_OURS = (
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
    "cache_implementation",
    "use_transformers_continuous_batching",
)


@dataclass(frozen=True)
class RolloutOptions:
    """`rollout:` in YAML: where the G completions of a prompt come from. All are legal SIDs."""

    mode: Literal["beam", "sample", "mixed"] = field(
        default="beam",
        metadata={
            "help": "beam: the G best SIDs, distinct; sample: G independent draws under the trie; mixed: a "
            "beam, and `sampled` of the group drawn without replacement from what it left out"
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "of the draws, and (as TRL's `temperature`) of the log-probs in the loss: draws stay "
            "on-policy"
        },
    )
    sampled: float = field(
        default=0.5, metadata={"help": "share of a mixed group that is drawn; 1: all of it"}
    )
    oversample: float = field(
        default=1.0,
        metadata={
            "help": "dynamic rollouts: candidates per completion, of which G are selected: a hit, then "
            "distinct SIDs in the order they came, then repeats (MiniOneRec draws 1.5)"
        },
    )
    add_ground_truth: bool = field(
        default=False, metadata={"help": "the truth replaces the last completion of a group without a hit"}
    )
    idle_groups: Literal["keep", "skip", "resample"] = field(
        default="keep",
        metadata={
            "help": "groups whose rewards are all equal teach nothing: kept (TRL), left out of the step and "
            "of its mean, or replaced by groups of other prompts (and left out if that fails)"
        },
    )
    resample_rounds: int = field(
        default=3, metadata={"help": "how often the idle groups of a rollout are replaced, at most"}
    )

    def check(self) -> None:
        """InputError for values out of range, and for those that the mode has no use for."""
        if not 0 < self.temperature < math.inf:
            raise InputError(f"rollout.temperature: {self.temperature}; give a positive number")
        if not 0 < self.sampled <= 1:
            raise InputError(f"rollout.sampled: {self.sampled}; give a share above 0, at most 1")
        if not 1 <= self.oversample < math.inf:
            raise InputError(f"rollout.oversample: {self.oversample}; give 1 (no selection) or more")
        if self.resample_rounds < 1:
            raise InputError(f"rollout.resample_rounds: {self.resample_rounds}; give at least 1")
        for name, value, needs in (
            ("temperature", self.temperature, self.mode != "beam"),
            ("sampled", self.sampled, self.mode == "mixed"),
            ("resample_rounds", self.resample_rounds, self.idle_groups == "resample"),
        ):
            default = self.__dataclass_fields__[name].default
            if value != default and not needs:
                raise InputError(
                    f"rollout.{name}: {value} has no effect with mode: {self.mode}, idle_groups: "
                    f"{self.idle_groups}; remove it"
                )

    def parts(self, group_size: int) -> tuple[int, int]:
        """How many candidates of a group are beams, and how many are drawn.

        `oversample` adds to the draws of a mixed group and leaves its beam as it is.
        """
        candidates = math.ceil(self.oversample * group_size)
        if self.mode == "mixed":
            beams = group_size - round(self.sampled * group_size)
            return beams, candidates - beams
        return (candidates, 0) if self.mode == "beam" else (0, candidates)

    def prefixes(self, group_size: int) -> int:
        """Prefixes that a prompt's walk down the trie grows at a level, at most: draws may share them."""
        beams, drawn = self.parts(group_size)
        return beams + drawn + self.add_ground_truth + (beams if self.mode == "mixed" else 0)

    def distinct(self, group_size: int) -> int:
        """SIDs that a prompt must have to be asked for at all: independent draws may repeat themselves."""
        return 1 if self.mode == "sample" else sum(self.parts(group_size))


def take_rollout(options: RolloutOptions, args: Any) -> None:
    """Fill TRL's `temperature`, and refuse what TRL's configuration says of rollouts that are not its own.

    Args:
        args: GRPOConfig.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    if args.use_vllm:
        # TRL 1.16 sends weights to a server through vLLM's NCCL engine alone: VLLMClient.init_communicator
        # refuses any device but CUDA, and a server never has the trainer's weights without it.
        raise InputError(
            "use_vllm: true is not supported: its server gets the policy's weights through NCCL between GPUs "
            "alone, and knows no SID trie; leave it out: rollouts read each prompt once in this process"
        )
    if args.temperature != 1:
        raise InputError(
            f"temperature: {args.temperature}; say --rollout '{{\"temperature\": {args.temperature}}}'"
        )
    args.temperature = options.temperature
    defaults = {given.name: given.default for given in dataclasses.fields(args)}
    for name in _NOT_OURS:
        if getattr(args, name) != defaults[name]:
            raise InputError(
                f"{name}: {getattr(args, name)!r} has no effect on rollouts under the trie; remove it "
                "(see rollout)"
            )
    size = args.num_generations
    if options.mode == "mixed" and round(options.sampled * size) == 0:
        raise InputError(
            f"rollout.sampled: {options.sampled} of {size} completions is none; raise it, or use mode: beam"
        )


def check_group_size(options: RolloutOptions, group_size: int, num_sids: int, longest_history: int) -> None:
    """InputError when some prompt has too few SIDs for a group (padding would repeat some).

    Args:
        num_sids: of the catalogue.
        longest_history: items that a prompt's history takes out of its list, at most.
    """
    available, needed = num_sids - longest_history, options.distinct(group_size)
    if needed > available:
        raise InputError(
            f"num_generations: {group_size} (rollout: mode {options.mode}, oversample {options.oversample}) "
            f"needs {needed} SIDs, but only {available} are left for some prompts (catalogue: {num_sids}, "
            f"longest history: {longest_history}); choose fewer"
        )
