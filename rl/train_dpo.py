"""DPO on pairs from the model's own beams: the truth against what it wrongly ranks first.

    accelerate launch -m rl.train_dpo --config configs/dpo/toy_cpu.yaml --model_name_or_path out/toy/model
    --output_dir out/toy/dpo

Every flag of TRL's DPOConfig works as well; `OWN_DEFAULTS` are those we set differently. The pairs come from
the model as it starts. With LoRA the reference is the model without its adapter, in full training a second
copy. Resuming, the result, the verdict and `--plan true` are as with rl.train_grpo.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.arguments import DPOArguments
from rl.policy import load_policy, train_and_judge
from sft.run import prepare_output
from sid_builder import cli

KIND = "dpo"
OWN_DEFAULTS = {
    "learning_rate": 1e-5,
    "beta": 0.1,
    "max_length": None,  # TRL: 1024; the template bounds prompts already
    "gradient_checkpointing": False,
    "save_total_limit": 1,
    "logging_steps": 5,
    "report_to": "none",
}
CURVES = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm")


def main(argv: Sequence[str]) -> None:
    own, args = cli.parse(
        DPOArguments, argv, lazy=["trl:DPOConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    if own.plan:
        from rl.plan import plan_dpo

        plan_dpo(own, args).show()
        return
    resume = prepare_output(Path(args.output_dir), KIND, args.resume_from_checkpoint, own.overwrite)
    policy = load_policy(own, args)
    trainer = build_trainer(policy, own, args)
    told = train_and_judge(trainer, policy, own, args, resume, KIND, CURVES)
    if trainer.is_world_process_zero():
        print(told)


def build_trainer(policy: Any, own: DPOArguments, args: Any) -> Any:
    """Pairs and trainer for a policy. Every rank builds the same pairs from the same weights and seed."""
    from datasets import Dataset

    from rl.dpo_trainer import TokenDPOTrainer
    from rl.preferences import build_preferences
    from rl.train_cases import draw_train_cases

    cases = draw_train_cases(policy, own.max_prompts, own.positions, args.seed)
    pairs = build_preferences(
        policy, cases, own.num_beams, own.num_negatives, only_hits=own.only_hits, seed=args.seed
    )
    ranks = [pair.rejected_rank for pair in pairs]
    print(
        f"{KIND}: {len(pairs):,} pairs from {len(cases):,} prompts; "
        f"the rejected item stood first in {ranks.count(0) / len(ranks):.1%}"
    )
    return TokenDPOTrainer(
        model=policy.model,
        args=args,
        train_dataset=Dataset.from_list([pair.row() for pair in pairs]),
        processing_class=policy.tokenizer,
        peft_config=own.peft_config(),
    )


if __name__ == "__main__":
    cli.run(main)
