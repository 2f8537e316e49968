"""GRPO on a merged model, with the constrained beam of the current policy as the rollout.

    accelerate launch -m rl.train_grpo --config configs/grpo/toy_cpu.yaml --model_name_or_path out/toy/model
    --output_dir out/toy/grpo

Every flag of TRL's GRPOConfig works as well; `OWN_DEFAULTS` are those we set differently.
`--resume_from_checkpoint true` goes on from the newest checkpoint. The result is `OUTPUT_DIR/model`, which
serve.evaluate and serve.launch open; whether it is better than what went in is said at the end and in
`OUTPUT_DIR/acceptance.json`. `--plan true` says what the run would cost (rl/plan.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl import REWARDS
from rl.arguments import GRPOArguments
from rl.policy import load_policy, train_and_judge
from sft.run import prepare_output
from sid_builder import cli
from sid_builder.errors import InputError
from sid_builder.registry import resolve

KIND = "grpo"
OWN_DEFAULTS = {
    "num_generations": 16,
    "learning_rate": 1e-5,
    "beta": 1e-3,  # TRL: 0, no reference model
    # TRL: dapo. All completions are equally long, so the token-mean variants differ by a constant only.
    "loss_type": "grpo",
    "mask_truncated_completions": False,  # SIDs carry no end token: "truncated" is their normal form
    "gradient_checkpointing": False,
    "save_total_limit": 1,
    "logging_steps": 5,
    "report_to": "none",
}
CURVES = ("reward", "frac_reward_zero_std", "kl", "entropy", "grad_norm", "learning_rate")


def main(argv: Sequence[str]) -> None:
    own, args = cli.parse(
        GRPOArguments, argv, lazy=["trl:GRPOConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    _take_weights(own.rewards, args)
    if own.plan:
        from rl.plan import plan_grpo

        plan_grpo(own, args).show()
        return
    resume = prepare_output(Path(args.output_dir), KIND, args.resume_from_checkpoint, own.overwrite)
    from rl.grpo_trainer import check_groups

    check_groups(args)
    policy = load_policy(own, args)
    trainer = build_trainer(policy, own, args)
    prompts = f"{len(trainer.train_dataset):,} prompts x {args.num_generations} completions"
    print(f"{KIND}: {prompts} for {own.rewards}")
    told = train_and_judge(trainer, policy, own, args, resume, KIND, CURVES)
    if trainer.is_world_process_zero():
        logged = [row.get("frac_reward_zero_std") for row in trainer.state.log_history]
        idle = [share for share in logged if share is not None]
        print(f"{KIND}: {sum(idle) / max(len(idle), 1):.1%} of the groups held no hit, hence no advantage")
        print(told)


def build_trainer(policy: Any, own: GRPOArguments, args: Any) -> Any:
    """Rows, rewards, rollout and trainer for a policy; sets the fields of `args` that the policy decides.

    Raises:
        InputError: when a group could not be filled with distinct legal SIDs.
    """
    from datasets import Dataset

    from rl.grpo_trainer import GroupedGRPOTrainer
    from rl.rewards.completions import BoundReward
    from rl.rollout import BeamRollout, check_group_size
    from rl.train_cases import draw_train_cases, prompt_rows

    template, interactions = policy.template, policy.interactions
    cases = draw_train_cases(policy, own.max_prompts, own.positions, args.seed)
    rows = prompt_rows(cases, template)
    # Evaluation leaves a user's history out of the list when the data has no repeats; so does the rollout.
    exclude_history = not interactions.has_repeats
    longest = max(len(row["history"]) for row in rows) if exclude_history else 0
    check_group_size(args.num_generations, policy.index.trie, longest)
    args.max_completion_length = policy.index.semantic_ids.depth
    args.chat_template_kwargs = template.pack.chat_template_kwargs
    rewards = [
        BoundReward(name, resolve(REWARDS, name, "rewards"), policy.index, template.vocabulary)
        for name in own.rewards
    ]
    return GroupedGRPOTrainer(
        model=policy.model,
        args=args,
        reward_funcs=rewards,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=own.peft_config(),
        rollout_func=BeamRollout(template, exclude_history),
        shared_prompt=own.update.shared_prompt,
    )


def _take_weights(rewards: dict[str, float], args: Any) -> None:
    if args.reward_weights is not None:
        raise InputError(
            f"reward_weights: {args.reward_weights}; weights stand beside the names: --rewards "
            "'{\"ranking\": 1.0}'"
        )
    args.reward_weights = list(rewards.values())


if __name__ == "__main__":
    cli.run(main)
