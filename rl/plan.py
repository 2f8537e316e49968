"""What `rl.train_grpo --plan true` and `rl.train_dpo --plan true` say; the parts are those of `sft.plan`.

They read a model directory without its weights: config.json, tokenizer, sid_index, interactions.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from prompts.opening import open_template
from rl.arguments import PolicyArgs
from rl.rollout import PROMPTS_AT_ONCE
from rl.train_cases import draw_train_cases
from serve.decoding.recommender import Recommender
from serve.evaluation.model_ranking import DEFAULT_BATCH_TOKENS
from sft.plan import Steps, mean_prompt_tokens, mixed_dtype
from sft.plan_flops import Batch, beam_flops, forward_flops, training_flops
from sft.plan_hardware import Launch
from sft.plan_memory import Memory, resident_memory, rollout_memory, step_memory
from sft.plan_model import ModelShape, adapted, config_model, saved_bytes, shape_of
from sft.plan_report import Plan, model_facts, remedies, scientific
from sid_builder.errors import InputError
from sid_builder.interactions import Histories

_SAMPLE = 2000  # prompts whose length is looked at


class PolicyPlan:
    """What GRPO and DPO have in common: a policy without weights, and the prompts it would be asked."""

    def __init__(self, own: PolicyArgs, args: Any) -> None:
        import torch

        self.own, self.args = own, args
        self.launch = Launch.current(args)
        template = open_template(own.model_name_or_path)
        path = Path(own.model_name_or_path)
        self.policy = Recommender(None, template.tokenizer, template.index, template, path)
        dtype = None if own.dtype == "auto" else getattr(torch, own.dtype)
        self.model = adapted(config_model(own.model_name_or_path, dtype), own.peft_config())
        self.shape: ModelShape = shape_of(self.model)
        self.depth = template.index.semantic_ids.depth
        self.cases: Histories = draw_train_cases(self.policy, own.max_prompts, own.positions, args.seed)
        rng = np.random.default_rng(args.seed)
        drawn = rng.choice(len(self.cases), min(_SAMPLE, len(self.cases)), replace=False)
        self.lengths = np.array([len(template.seqrec_prompt(self.cases.history(case))) for case in drawn])

    def padded_length(self, prompts: int) -> float:
        """The longest of `prompts` random prompts, on average."""
        rng = np.random.default_rng(self.args.seed)
        return float(np.mean([rng.choice(self.lengths, prompts).max() for _ in range(200)]))

    def judging(self) -> float:
        """FLOPs of ranking valid before and after, by the main process alone."""
        histories = self.policy.interactions.histories("valid")
        if not self.own.valid_cases or not len(histories):
            return 0.0
        tokens = mean_prompt_tokens(self.policy.template, histories, self.args.seed)
        one = beam_flops(self.shape, tokens, self.own.eval_num_beams, self.depth)
        return 2 * min(self.own.valid_cases, len(histories)) * one

    def memory(self, largest: Batch, reference: bool, beam: tuple[float, int]) -> Memory:
        """Args: `reference`: whether a second, frozen model is kept; `beam`: prompts at once, beams each."""
        mixed = mixed_dtype(self.args)
        kept = saved_bytes(self.model, math.ceil(largest.rows), int(largest.width), mixed)
        return Memory(
            resident_memory(
                self.shape, self.launch, self.args.optim, self.shape.weight_bytes if reference else 0.0
            ),
            step_memory(self.shape, largest, kept, largest.labelled, self.args.gradient_checkpointing),
            rollout_memory(self.shape, beam[0], float(self.lengths.max()), beam[1], self.depth),
        )

    def plan(
        self,
        command: str,
        facts: dict[str, str],
        steps: Steps,
        step_flops: float,
        cpu_step_flops: float,
        outside: float,
        memory: Memory,
    ) -> Plan:
        """Put together: `step_flops` of one device and optimizer step, `outside` of everything else."""
        total, processes = steps.total * step_flops + outside, self.launch.processes
        return Plan(
            command=command,
            shape=self.shape,
            launch=self.launch,
            facts={
                **model_facts(self.shape, self.launch),
                **facts,
                "steps": f"{steps.epoch:,} an epoch, {steps.total:,} in all",
                "FLOPs": f"{scientific(step_flops * processes)} a step; {scientific(total)} in all by the "
                f"busiest device, of which {outside / total:.1%} outside training steps",
            },
            figures={
                "prompts": len(self.cases),
                "prompt_tokens": float(self.lengths.mean()),
                "steps": steps.total,
                "flops_step": step_flops * processes,
                "flops_device": total,
            },
            memory=memory,
            device_flops=total,
            cpu_flops=steps.total * cpu_step_flops + outside,
            half=bool(mixed_dtype(self.args)) or self.shape.itemsize == 2,
            remedies=remedies(
                self.own.training, self.shape.itemsize == 2, self.args, self.launch, "zero2.yaml", False
            ),
        )


def plan_grpo(own: Any, args: Any) -> Plan:
    """Plan the run that `rl.train_grpo` would make of these arguments.

    Raises:
        InputError: for an incomplete model directory, batch sizes that cut a group, and sharded weights,
            which rollouts refuse.
    """
    from rl.grpo_trainer import check_groups

    check_groups(args)
    given = PolicyPlan(own, args)
    shape, group, rows = given.shape, args.num_generations, args.per_device_train_batch_size
    if given.launch.sharding in ("fsdp2", "zero3"):
        raise InputError(
            f"accelerate: beam rollouts need whole weights on every rank, and {given.launch.sharding} shares "
            "them out; use DDP or ZeRO-2"
        )
    prompts = rows * args.steps_per_generation // group  # of one rollout on one device
    shared = own.update.shared_prompt and rows % group == 0

    def micro_batch(prompt_tokens: float) -> Batch:
        labelled = rows * given.depth
        if shared:
            return Batch.of(rows // group, prompt_tokens - 1 + group * given.depth, labelled)
        return Batch.of(rows, prompt_tokens + given.depth, labelled)

    batch, largest = micro_batch(given.padded_length(prompts)), micro_batch(float(given.lengths.max()))
    misaligned = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) != 0
    passes = (args.beta != 0) + misaligned  # reference and old log-probs, once a rollout
    rollout = prompts * beam_flops(shape, float(given.lengths.mean()), group, given.depth)

    def step(scored: float) -> float:
        """Optimizer step of one device; its share of the rollout in it."""
        training = training_flops(shape, batch, scored, args.gradient_checkpointing)
        around = args.steps_per_generation * passes * forward_flops(shape, batch, scored) + rollout
        around /= args.steps_per_generation * args.num_iterations
        return args.gradient_accumulation_steps * (training + around)

    rollouts = max(len(given.cases) // (prompts * given.launch.processes), 1)
    steps = Steps.of(args, rollouts * args.steps_per_generation * args.num_iterations)
    tokens = f"{given.lengths.mean():.0f} tokens on average, {given.lengths.max()} at most"
    facts = {
        "prompts": f"{len(given.cases):,} of {tokens}; {group} beams of {given.depth} tokens each",
        "batches": f"{rows} completions a device, as {batch.rows:.0f} x {batch.width:.0f} tokens; a rollout "
        f"of {prompts} prompts a device every {args.steps_per_generation * args.num_iterations} of them",
    }
    reference = args.beta != 0 and own.training == "full"
    memory = given.memory(largest, reference, (min(prompts, PROMPTS_AT_ONCE), group))
    # On a CPU TRL 1.16's head scores every position.
    return given.plan(
        "rl.train_grpo", facts, steps, step(batch.labelled), step(batch.cells), given.judging(), memory
    )


def plan_dpo(own: Any, args: Any) -> Plan:
    """Plan the run that `rl.train_dpo` would make of these arguments; pairs that `only_hits` leaves out are
    counted, since only a model knows them.

    Raises:
        InputError: for an incomplete model directory.
    """
    given = PolicyPlan(own, args)
    shape, size = given.shape, args.per_device_train_batch_size
    answer = given.depth + len(given.policy.template.end_ids)

    def micro_batch(prompt_tokens: float) -> Batch:
        return Batch.of(2 * size, prompt_tokens + answer, 2 * size * answer)

    batch, largest = micro_batch(given.padded_length(size)), micro_batch(float(given.lengths.max()))

    def step(scored: float) -> float:
        training = training_flops(shape, batch, scored, args.gradient_checkpointing)
        reference = 0 if args.precompute_ref_log_probs else forward_flops(shape, batch, scored)
        return args.gradient_accumulation_steps * (training + reference)

    pairs = len(given.cases) * own.num_negatives
    steps = Steps.of(args, math.ceil(pairs / (size * given.launch.processes)))
    search = len(given.cases) * beam_flops(shape, float(given.lengths.mean()), own.num_beams, given.depth)
    tokens = f"{given.lengths.mean():.0f} tokens on average, {given.lengths.max()} at most"
    facts = {
        "prompts": f"{len(given.cases):,} of {tokens}; {own.num_beams} beams each, on every device",
        "pairs": f"{pairs:,}" + (" at most: only_hits leaves some out" if own.only_hits else ""),
        "batches": f"{size} pairs a device, as {batch.rows:.0f} x {batch.width:.0f} tokens; "
        f"{size * given.launch.processes * args.gradient_accumulation_steps} pairs a step",
    }
    searched = given.lengths.mean() + own.num_beams * (given.depth - 1)
    at_once = max(DEFAULT_BATCH_TOKENS / float(searched), 1.0)
    memory = given.memory(largest, own.training == "full", (at_once, own.num_beams))
    outside = search + given.judging()
    return given.plan("rl.train_dpo", facts, steps, step(batch.labelled), step(batch.cells), outside, memory)
