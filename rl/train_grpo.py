"""GRPO on a merged model, with SIDs of the current policy under the trie as the rollout.

    accelerate launch -m rl.train_grpo --config configs/grpo/toy_cpu.yaml --model_name_or_path out/toy/model
    --output_dir out/toy/grpo

Every flag of TRL's GRPOConfig works as well; `OWN_DEFAULTS` are those we set differently.
`--resume_from_checkpoint true` goes on from the newest checkpoint, with the same settings. The result is
`OUTPUT_DIR/model`, which serve.evaluate and serve.launch open: of the checkpoints, the best on valid. Whether
it is better than what went in is said at the end and in `OUTPUT_DIR/acceptance.json`, by valid cases that no
step was chosen on. `--plan true` says what the run would cost (rl/plan.py).
"""

from collections.abc import Sequence
from typing import Any

from rl.arguments import GRPOArguments
from rl.rewards.building import bound_rewards, warn_of_lost_ranks
from rl.rollout_options import check_group_size, take_rollout
from rl.update_options import check_update
from sid_builder import cli
from sid_builder.errors import InputError

KIND = "grpo"
OWN_DEFAULTS = {
    "num_generations": 16,
    "learning_rate": 1e-5,
    "beta": 1e-3,  # TRL: 0, no reference model
    # TRL: dapo. All completions are equally long, so the token-mean variants differ by a constant only.
    "loss_type": "grpo",
    "mask_truncated_completions": False,  # SIDs carry no end token: "truncated" is their normal form
    "gradient_checkpointing": False,
    "num_generations_eval": 1,  # TRL would have groups fit evaluation batches; evaluation draws none
    "load_best_model_at_end": None,  # left open: sft.valid_ranking settles it
    "save_total_limit": 1,
    "logging_steps": 5,
    "report_to": "none",
}
CURVES = ("reward", "idle_groups", "kl", "entropy", "truth_loss", "grad_norm", "learning_rate")


def main(argv: Sequence[str]) -> None:
    own, args = cli.parse(
        GRPOArguments, argv, lazy=["trl:GRPOConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    _take_weights(own.rewards, args)
    take_rollout(own.rollout, args)
    check_update(own.update, args, own.training)
    warn_of_lost_ranks(own.rewards, args.scale_rewards)
    if own.plan:
        from rl.plan import plan_grpo

        plan_grpo(own, args).show()
        return
    from rl.grpo_trainer import check_groups
    from rl.run import PolicyRun

    check_groups(args)
    run = PolicyRun(own, args, KIND)
    trainer = build_trainer(run.open(), own, args)
    prompts = f"{len(trainer.train_dataset):,} prompts x {args.num_generations} completions"
    print(f"{KIND}: {prompts} for {own.rewards}")
    told = run.train(trainer, CURVES)
    if trainer.is_world_process_zero():
        shares = [row["idle_groups"] for row in trainer.state.log_history if "idle_groups" in row]
        print(f"{KIND}: {sum(shares) / max(len(shares), 1):.1%} of the groups were idle: no advantage")
        print(told)


def build_trainer(policy: Any, own: GRPOArguments, args: Any) -> Any:
    """Rows, rewards, rollout and trainer for a policy; sets the fields of `args` that the policy decides.

    Raises:
        InputError: when a group could not be filled with legal SIDs.
    """
    from datasets import Dataset

    from rl.grpo_trainer import GroupedGRPOTrainer
    from rl.rollout import Rollout
    from rl.train_cases import draw_train_cases, prompt_rows

    template, interactions = policy.template, policy.interactions
    cases = draw_train_cases(policy, own.max_prompts, own.positions, args.seed)
    rows = prompt_rows(cases, template)
    # Evaluation leaves a user's history out of the list when the data has no repeats; so does the rollout.
    exclude_history = not interactions.has_repeats
    longest = max(len(row["history"]) for row in rows) if exclude_history else 0
    check_group_size(own.rollout, args.num_generations, policy.index.trie.num_leaves, longest)
    args.max_completion_length = policy.index.semantic_ids.depth
    args.chat_template_kwargs = template.pack.chat_template_kwargs
    rewards = bound_rewards(
        own.rewards, own.reward_args, policy.index, template.vocabulary, policy.interactions
    )
    return GroupedGRPOTrainer(
        model=policy.model,
        args=args,
        reward_funcs=rewards,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=own.peft_config(),
        rollout_func=Rollout(template, own.rollout, exclude_history),
        idle_groups=own.rollout.idle_groups,
        update=own.update,
        template=template,
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
