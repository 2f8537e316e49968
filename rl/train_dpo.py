"""DPO and S-DPO: an answer to prefer against answers to reject, from the model's own beams or elsewhere.

    accelerate launch -m rl.train_dpo --config configs/dpo/toy_cpu.yaml --model_name_or_path out/toy/model
    --output_dir out/toy/dpo
    ... --loss_type s_dpo --negatives '{"beam": 2, "random": 1}'
    ... --preferences out/toy/preferences

Every flag of TRL's DPOConfig works as well; `OWN_DEFAULTS` are those we set differently. Preferences come
from the model as it starts (rl/preferences.py), unless they are given. `loss_type: s_dpo` sets a preferred
answer against all rejected ones at once; TRL's losses take each as a pair of its own. With LoRA the reference
is the model without its adapter, in full training a second copy (or its log-probs, taken before:
`precompute_ref_log_probs`). Resuming, the result, the verdict and `--plan true` are as with rl.train_grpo.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.arguments import DPOArguments
from sid_builder import cli

KIND = "dpo"
OWN_DEFAULTS = {
    "learning_rate": 1e-5,
    "beta": 0.1,
    "max_length": None,  # TRL: 1024; the template bounds prompts already
    "gradient_checkpointing": False,
    "load_best_model_at_end": None,  # left open: sft.valid_ranking settles it
    "save_total_limit": 1,
    "logging_steps": 5,
    "report_to": "none",
}
CURVES = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm")


def main(argv: Sequence[str]) -> None:
    own, args = cli.parse(
        DPOArguments, argv, lazy=["trl:DPOConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    if own.plan:
        from rl.plan import plan_dpo

        plan_dpo(own, args).show()
        return
    train(own, args)


def train(own: DPOArguments, args: Any, draws: int | None = None) -> None:
    """One run from checked arguments to a sealed directory.

    Args:
        draws: seed of the preferences that are made; that of `args` by default.

    Raises:
        InputError: for losses that `args` does not fit, an output directory that is in the way, and
            preferences or a reference that do not speak the model's SIDs.
    """
    from rl.dpo_losses import check_losses
    from rl.run import PolicyRun

    check_losses(args, own.training)
    run = PolicyRun(own, args, KIND)
    trainer = build_trainer(run.open(), own, args, run.resume, args.seed if draws is None else draws)
    told = run.train(trainer, CURVES)
    if trainer.is_world_process_zero():
        print(told)


def build_trainer(
    policy: Any, own: DPOArguments, args: Any, resume: bool | str = False, draws: int = 0
) -> Any:
    """Preferences, reference and trainer for a policy.

    Preferences that are made here stay beside the run, which reads them again when it is resumed.
    """
    from rl.dpo_trainer import TokenDPOTrainer
    from rl.preference_files import check_same_meaning, meaning_of_ids, open_preferences, told
    from rl.preferences import make_preferences
    from serve.decoding.recommender import Recommender

    path = Path(own.preferences or f"{args.output_dir}.preferences")
    if own.preferences is None and not (resume and path.is_dir()):
        made = make_preferences(policy, own, own.max_prompts, own.positions, draws, path, overwrite=True)
        if args.process_index == 0:
            print(f"{KIND}: {told(made)}; see {path / 'sample.md'}")
    rows = open_preferences(path, policy.template)
    reference = None
    if own.reference is not None:
        other = Recommender.load(own.reference, device=str(args.device), dtype=own.dtype)
        meaning = meaning_of_ids(other.template)
        check_same_meaning(meaning, policy.template, f"reference: {own.reference} was trained")
        reference = other.model
    return TokenDPOTrainer(
        model=policy.model,
        ref_model=reference,
        args=args,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=own.peft_config(),
        shared_prompt=own.shared_prompt,
    )


if __name__ == "__main__":
    cli.run(main)
