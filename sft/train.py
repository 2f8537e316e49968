"""Teach a language model the semantic IDs: supervised fine-tuning with TRL.

    accelerate launch -m sft.train --config configs/sft/toy_qwen3_scratch.yaml --sid_dir out/toy/sids
    --output_dir out/toy/sft
    accelerate launch -m sft.train --config configs/recipes/qwen2.5-0.5b_1x24gb/sft.yaml
    --sid_dir out/run/sids --output_dir out/run/sft

Every flag of TRL's SFTConfig works as well. Our defaults that differ from TRL's: `max_length` null (the
renderer bounds prompts), gradient checkpointing off. `--resume_from_checkpoint true` goes on from the newest
checkpoint. Then `python -m sft.merge --adapter OUTPUT_DIR --output_dir MODEL_DIR` makes the directory that rl
and serve open. `--plan true` says what the run would cost (sft/plan.py).
"""

import dataclasses
from collections.abc import Sequence

from prompts.pack import PromptPack
from sft.arguments import SftArguments
from sft.run import OWN_DEFAULTS, Run
from sid_builder import cli
from sid_builder.artifact import open_artifact, to_json
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex


def main(argv: Sequence[str]) -> None:
    args, config = cli.parse(
        SftArguments, argv, lazy=["trl:SFTConfig"], own_defaults=OWN_DEFAULTS, description=__doc__
    )
    if args.plan:
        from sft.plan import plan_sft

        plan_sft(args, config, _pack(args)).show()
        return
    sids = open_artifact(args.sid_dir, "sids")
    run = Run(args, config, "sft.train")
    index = SidIndex.load(sids.path / "sid_index")
    interactions = Interactions.load(sids.path / "interactions")

    from accelerate import PartialState

    from prompts.intents import Intents
    from sft.examples import TaskContext
    from sft.start import start_model

    pack = _pack(args)
    model, _, template, sid_token_ids = start_model(args, pack, index, config.seed)
    learnt = interactions.without_last_train() if args.hold_out_last else interactions
    intents = Intents.load(args.intents, index.catalog) if args.intents else None
    context = TaskContext(index, learnt, template, intents, args.layout.positions)
    inputs = {"intents": args.intents} if args.intents else {}
    rows = run.rows(context, args.task_weights, {"sids": sids.path, **inputs})
    trainer = run.train(model, template, sid_token_ids, rows, interactions)
    run.seal(trainer, {"sft": to_json(args)}, sids, inputs, summary={"rows": len(rows)})
    PartialState().wait_for_everyone()


def _pack(args: SftArguments) -> PromptPack:
    pack = PromptPack.load(args.prompt_pack)
    given = {"max_history": args.max_history, "max_prompt_tokens": args.max_prompt_tokens}
    return dataclasses.replace(pack, **{key: value for key, value in given.items() if value is not None})


if __name__ == "__main__":
    cli.run(main)
