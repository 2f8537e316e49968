"""How preferences are made, in YAML: what is rejected, from where, and who judges."""

from dataclasses import dataclass, field
from typing import Any

from rl import NEGATIVES, REWARDS
from rl.rewards.building import check_rewards
from sid_builder import cli
from sid_builder.errors import InputError
from sid_builder.registry import options_class, resolve

PREFERENCES_KIND = "preferences"  # of artefacts


@dataclass(kw_only=True)
class PreferenceOptions:
    """Options of `rl.preferences`, which `rl.train_dpo` and `rl.improve` take as well."""

    negatives: dict[str, int] = field(
        default_factory=lambda: {"beam": 1},
        metadata={
            "help": "rejected answers per prompt, by where they come from, such as {beam: 2, random: 1}: "
            f"{sorted(NEGATIVES)} or a path like my.module:Source"
        },
    )
    negative_args: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={
            "help": "options of a source, by its name in `negatives`, such as {feedback: {file: log.jsonl}}"
        },
    )
    num_beams: int = field(
        default=16, metadata={"help": "width of the beam that rejected answers (and judged ones) come from"}
    )
    only_hits: bool = field(
        default=False,
        metadata={"help": "only prompts whose beam holds the truth: the pairs teach order, not recall"},
    )
    rewards: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "help": "judges in the truth's place, such as {semantic: 1.0, rule: 1.0}: of the beam the best-"
            f"rewarded SID is chosen and the worst are rejected; weights by name: {sorted(REWARDS)} or a path"
        },
    )
    reward_args: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": "options of a reward, by its name in `rewards`"}
    )

    @property
    def num_negatives(self) -> int:
        """Rejected answers per prompt, at most."""
        return sum(self.negatives.values())

    @property
    def needs_beam(self) -> bool:
        """Whether preferences take a beam of the model for every prompt, or could do without its weights."""
        sources = (resolve(NEGATIVES, name, "negatives") for name in self.negatives)
        return bool(self.rewards) or self.only_hits or any(source.needs_beam for source in sources)

    def check_preferences(self) -> None:
        """InputError for unknown names, options that do not fit, and counts a beam cannot give."""
        if not self.negatives:
            raise InputError(f"negatives: empty; name at least one of {sorted(NEGATIVES)}")
        for name, count in self.negatives.items():
            if count < 1:
                raise InputError(f"negatives.{name}: {count}; give at least 1, or leave it out")
            source_options(name, self.negative_args.get(name, {}))
        for name in self.negative_args:
            if name not in self.negatives:
                raise InputError(
                    f"negative_args.{name}: is not one of negatives {sorted(self.negatives)}; add it or drop "
                    "this"
                )
        beams = self.negatives.get("beam", 0)
        if beams >= self.num_beams:
            raise InputError(
                f"negatives.beam: {beams}; must be fewer than num_beams: {self.num_beams}, one of which may "
                "be the truth"
            )
        if self.rewards:
            check_rewards(self.rewards, self.reward_args)
            if set(self.negatives) != {"beam"}:
                raise InputError(
                    f"rewards: {sorted(self.rewards)} judge beams alone; set negatives: {{beam: "
                    f"{self.num_negatives}}}, or leave rewards out"
                )
        elif self.reward_args:
            raise InputError(
                f"reward_args: {sorted(self.reward_args)} have no effect without rewards; name them there"
            )


def source_options(name: str, given: dict[str, Any]) -> Any:
    """A source's options from their mapping, checked.

    Raises:
        InputError: for an unknown source, an unknown or missing option, a wrong value.
    """
    field_name = f"negative_args.{name}"
    made = cli.build_dataclass(options_class(resolve(NEGATIVES, name, "negatives")), given, field_name)
    if hasattr(made, "check"):
        made.check(field_name)
    return made
