"""What `rl.train_grpo --plan true` and `rl.train_dpo --plan true` say; the parts are those of `sft.plan`.

They read a model directory without its weights: config.json, tokenizer, sid_index, interactions.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from prompts.opening import open_template
from rl.acceptance import PROBED, halves
from rl.arguments import PolicyArgs
from rl.launch import refuse_parts
from rl.preference_options import PREFERENCES_KIND
from rl.ranked_policy import evaluations_of, schedule_ranking
from rl.rollout import PROMPTS_AT_ONCE
from rl.train_cases import draw_train_cases
from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import COVERAGE_CUTOFF
from serve.evaluation.model_ranking import DEFAULT_BATCH_TOKENS
from sft.plan import Steps, mean_prompt_tokens, mixed_dtype
from sft.plan_flops import Batch, beam_flops, forward_flops, training_flops
from sft.plan_hardware import GIB, Launch
from sft.plan_memory import Memory, resident_memory, rollout_memory, step_memory
from sft.plan_model import ModelShape, adapted, config_model, saved_bytes, shape_of
from sft.plan_report import Plan, model_facts, remedies, scientific
from sid_builder.artifact import open_artifact
from sid_builder.interactions import Histories

_SAMPLE = 2000  # prompts whose length is looked at


class PolicyPlan:
    """What GRPO and DPO have in common: a policy without weights, and the prompts it would be asked."""

    def __init__(self, own: PolicyArgs, args: Any) -> None:
        import torch

        self.own, self.args = own, args
        schedule_ranking(own, args)
        self.launch = Launch.current(args)
        refuse_parts(self.launch.sharding)
        template = open_template(own.model_name_or_path)
        path = Path(own.model_name_or_path)
        self.policy = Recommender(None, template.tokenizer, template.index, template, path)
        dtype = None if own.dtype == "auto" else getattr(torch, own.dtype)
        self.model = adapted(config_model(own.model_name_or_path, dtype), own.peft_config())
        self.shape: ModelShape = shape_of(self.model, own.load_in_4bit)
        self.depth = template.index.semantic_ids.depth
        self.cases: Histories = draw_train_cases(self.policy, own.max_prompts, own.positions, args.seed)
        rng = np.random.default_rng(args.seed)
        drawn = rng.choice(len(self.cases), min(_SAMPLE, len(self.cases)), replace=False)
        self.lengths = np.array([len(template.seqrec_prompt(self.cases.history(case))) for case in drawn])

    def padded_length(self, prompts: int) -> float:
        """The longest of `prompts` random prompts, on average."""
        rng = np.random.default_rng(self.args.seed)
        return float(np.mean([rng.choice(self.lengths, prompts).max() for _ in range(200)]))

    def judging(self, steps: Steps) -> float:
        """FLOPs of ranking valid before, meanwhile and after, of one device: cases are shared out."""
        template, histories = self.policy.template, self.policy.interactions.histories("valid")
        cases = min(self.own.valid_cases, len(histories))
        if not cases:
            return 0.0
        tokens = mean_prompt_tokens(template, histories, self.args.seed)
        one = beam_flops(self.shape, tokens, self.own.eval_num_beams, self.depth)
        judged, choosing = halves(cases, bool(self.args.load_best_model_at_end))
        # Looked at more closely: a list, its log-probs, and a free beam.
        closely = 2 * one + beam_flops(self.shape, tokens, COVERAGE_CUTOFF, self.depth)
        ranked = choosing * (1 + evaluations_of(steps, self.args)) + 2 * judged
        return (ranked * one + 2 * min(judged, PROBED) * closely) / self.launch.processes

    def memory(self, largest: Batch, reference: bool, beam: tuple[float, int]) -> Memory:
        """Args: `reference`: whether a second, frozen model is kept; `beam`: prompts at once, beams each."""
        mixed = mixed_dtype(self.args)
        kept = saved_bytes(self.model, math.ceil(largest.rows), int(largest.width), mixed)
        resident = resident_memory(
            self.shape, self.launch, self.args.optim, self.shape.weight_bytes if reference else 0.0
        )
        if self.launch.sharding == "fsdp2":
            resident["whole policy"] = self.shape.weight_bytes / GIB  # for rollouts (rl/whole_policy.py)
        return Memory(
            resident,
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
                "evaluations": evaluations_of(steps, self.args),
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
        InputError: for an incomplete model directory, batch sizes that cut a group, and weights shared out in
            a way that rollouts refuse.
    """
    from rl.grpo_trainer import check_groups

    check_groups(args)
    given = PolicyPlan(own, args)
    shape, group, rows = given.shape, args.num_generations, args.per_device_train_batch_size
    grown = own.rollout.prefixes(group)
    prompts = rows * args.steps_per_generation // group  # of one rollout on one device
    together = math.gcd(rows, group) if own.update.shared_prompt else 1  # completions behind one prompt
    branches = together + (own.update.truth_weight > 0)
    ours = branches > 1 or own.update.log_probs == "trie"  # branches begin with the prompt's last token

    def micro_batch(prompt_tokens: float) -> Batch:
        prompts_read, labelled = rows // together, rows // together * branches * given.depth
        return Batch.of(prompts_read, prompt_tokens - ours + branches * given.depth, labelled)

    batch, largest = micro_batch(given.padded_length(prompts)), micro_batch(float(given.lengths.max()))
    misaligned = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) != 0
    passes = (args.beta != 0) + misaligned  # reference and old log-probs, once a rollout
    # Other prompts that take an idle group's place are not known before.
    rollout = prompts * beam_flops(shape, float(given.lengths.mean()), grown, given.depth)

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
        "prompts": f"{len(given.cases):,} of {tokens}; {group} completions of "
        f"{given.depth} tokens each ({own.rollout.mode})",
        "batches": f"{rows} completions a device, as {batch.rows:.0f} x {batch.width:.0f} tokens; a rollout "
        f"of {prompts} prompts a device every {args.steps_per_generation * args.num_iterations} of them",
    }
    reference = args.beta != 0 and own.training == "full"
    memory = given.memory(largest, reference, (min(prompts, PROMPTS_AT_ONCE), grown))
    # On a CPU TRL 1.16's head scores every position in its own layout, and completions alone in ours.
    on_cpu = step(batch.labelled if ours else batch.cells)
    return given.plan(
        "rl.train_grpo", facts, steps, step(batch.labelled), on_cpu, given.judging(steps), memory
    )


def plan_dpo(own: Any, args: Any) -> Plan:
    """Plan the run that `rl.train_dpo` would make of these arguments. Sets that only a model would leave out
    (`only_hits`, rewards that tell nothing apart) are counted, unless `preferences` are made already.

    Raises:
        InputError: for an incomplete model directory, and weights shared out in a way that rankings refuse.
    """
    given = PolicyPlan(own, args)
    shape, size, processes = given.shape, args.per_device_train_batch_size, given.launch.processes
    answer = given.depth + len(given.policy.template.end_ids)
    sets, rejected, beams = len(given.cases), float(own.num_negatives), own.num_beams * own.needs_beam
    if own.preferences is not None:
        made = open_artifact(own.preferences, PREFERENCES_KIND).summary
        sets, rejected, beams = made["sets"], sum(made["rejected"].values()) / made["sets"], 0

    def micro_batch(prompt_tokens: float) -> Batch:
        if own.shared_prompt:
            answers = (1 + rejected) * answer
            return Batch.of(size, prompt_tokens - 1 + answers, size * answers)
        rows = 2 * rejected * size  # pairs, each of two rows
        return Batch.of(rows, prompt_tokens + answer, rows * answer)

    batch, largest = micro_batch(given.padded_length(size)), micro_batch(float(given.lengths.max()))

    def step(scored: float) -> float:
        training = training_flops(shape, batch, scored, args.gradient_checkpointing)
        reference = 0 if args.precompute_ref_log_probs else forward_flops(shape, batch, scored)
        return args.gradient_accumulation_steps * (training + reference)

    steps = Steps.of(args, math.ceil(sets / (size * processes)))
    outside = given.judging(steps)
    if beams:
        one = beam_flops(shape, float(given.lengths.mean()), beams, given.depth)
        outside += len(given.cases) * one / processes
    if args.precompute_ref_log_probs:
        outside += (
            steps.epoch * args.gradient_accumulation_steps * forward_flops(shape, batch, batch.labelled)
        )
    tokens = f"{given.lengths.mean():.0f} tokens on average, {given.lengths.max()} at most"
    facts = {
        "prompts": f"{sets:,} of {tokens}; " + (f"{beams} beams each" if beams else "no beams"),
        "pairs": f"{sets * rejected:,.0f}"
        + (" at most: only_hits leaves some out" if own.only_hits and beams else ""),
        "batches": f"{size} prompts a device, as {batch.rows:.0f} x {batch.width:.0f} tokens; "
        f"{size * processes * args.gradient_accumulation_steps} prompts a step",
    }
    searched = given.lengths.mean() + beams * (given.depth - 1)
    at_once = max(DEFAULT_BATCH_TOKENS / float(searched), 1.0)
    second = own.training == "full" and not args.precompute_ref_log_probs or own.reference is not None
    memory = given.memory(largest, second, (at_once, max(beams, 1)))
    # On a CPU TRL 1.16's head scores every position that it is given: of shared prompts, the answers' alone.
    on_cpu = step(batch.labelled if own.shared_prompt else batch.cells)
    return given.plan("rl.train_dpo", facts, steps, step(batch.labelled), on_cpu, outside, memory)
