"""What `--plan true` of sft.train and sft.refresh says: data, parameters, FLOPs, memory and hours of a run.

It reads the SID directory, the tokenizer and the checkpoint's config.json: no weights, no GPU. The data is
counted in some seconds to a minute (a sample of it where it is large: `plan_data`), parameters too, on a
model without memory (`plan_model`); FLOPs (`plan_flops`) and memory (`plan_memory`) follow by formula.
`accelerate launch` tells the number of processes and how they share a model, or ACCELERATE_CONFIG_FILE does,
which names the launch file of a machine that is elsewhere:

    ACCELERATE_CONFIG_FILE=configs/accelerate/fsdp2.yaml python -m sft.train --config X --sid_dir D
    --output_dir O --plan true
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prompts.intents import Intents
from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from serve.evaluation.model_ranking import DEFAULT_BEAMS, sample_cases
from sft.adapters import lora_config
from sft.arguments import SftArguments
from sft.collators import collator_of
from sft.examples import TaskContext
from sft.launch import check_rows_whole
from sft.models.scratch import build_model
from sft.plan_data import Batches, Volume, draw_batches, measure
from sft.plan_flops import beam_flops, training_flops
from sft.plan_hardware import Launch
from sft.plan_memory import Memory, resident_memory, step_memory
from sft.plan_model import adapted, config_model, on_meta, plain, saved_bytes, shape_of
from sft.plan_report import Plan, model_facts, remedies, scientific
from sft.start import start_tokenizer
from sft.valid_ranking import schedule_evaluation
from sft.vocabulary import extend_model
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions
from sid_builder.sid_index import SidIndex

# What a run learns from, given its template, and how many cases it ranks besides valid samples.
Prepare = Callable[[PromptTemplate], tuple[TaskContext, int]]


def plan_sft(args: SftArguments, config: Any, pack: PromptPack) -> Plan:
    """Plan the run that `sft.train` would make of these arguments; raises as `plan_training`."""
    sids = open_artifact(args.sid_dir, "sids")
    index = SidIndex.load(sids.path / "sid_index")
    interactions = Interactions.load(sids.path / "interactions")

    def prepare(template: PromptTemplate) -> tuple[TaskContext, int]:
        learnt = interactions.without_last_train() if args.hold_out_last else interactions
        intents = Intents.load(args.intents, index.catalog) if args.intents else None
        return TaskContext(index, learnt, template, intents, args.layout.positions), 0

    return plan_training("sft.train", args, config, pack, index, interactions, prepare)


def plan_training(
    command: str,
    args: SftArguments,
    config: Any,
    pack: PromptPack,
    index: SidIndex,
    interactions: Interactions,
    prepare: Prepare,
    report_cases: int = 0,
) -> Plan:
    """Plan a supervised training run.

    Args:
        config: TRL's SFTConfig.
        interactions: whose valid cases are ranked meanwhile.
        report_cases: the flag behind the cases that `prepare` counts.

    Raises:
        InputError: when the tokenizer or config.json cannot be opened, and for whatever training would be
            refused for before its first step.
    """
    launch = Launch.current(config)
    for name, cases in (("valid_cases", args.valid_cases), ("report_cases", report_cases)):
        if cases and launch.sharding in ("fsdp2", "zero3"):
            raise InputError(
                f"{name}: {cases} cannot be ranked under {launch.sharding}, where no process holds whole "
                f"weights; set {name}: 0, and rank the merged model with serve.evaluate"
            )
    schedule_evaluation(config, args.valid_cases, args.patience)
    dtype = getattr(torch, args.dtype)
    base = config_model(args.model_name_or_path, dtype) if args.model_name_or_path is not None else None
    tokenizer, template, token_ids = start_tokenizer(args, pack, index)
    with on_meta():
        if base is not None:
            extend_model(base, tokenizer)
        else:
            assert args.from_scratch is not None
            end_id, pad_id = template.end_id, tokenizer.pad_token_id
            base = build_model(args.from_scratch, len(tokenizer), end_id, pad_id, config.seed).to(dtype)
    check_rows_whole(args, launch.sharding, base.config.get_text_config().tie_word_embeddings)
    model = adapted(base, lora_config(args, base, token_ids) if args.training == "lora" else None)
    if args.layout.attention == "eager":  # flash keeps what sdpa keeps
        plain(model).set_attn_implementation("eager")
    shape = shape_of(model, args.load_in_4bit)

    context, asked = prepare(template)
    volume = measure(context, args.task_weights or {}, config.seed)
    collate = collator_of(args.layout, tokenizer.pad_token_id, dtype)
    batches = draw_batches(volume.sample, config.per_device_train_batch_size, collate, config.seed)

    largest, mean = batches.largest, batches.mean
    kept = saved_bytes(model, int(largest.rows), int(largest.width), mixed_dtype(config), batches.masked)
    memory = Memory(
        resident_memory(shape, launch, config.optim),
        step_memory(shape, largest, kept, largest.labelled, config.gradient_checkpointing),
    )
    micro = math.ceil(volume.rows.value / (config.per_device_train_batch_size * launch.processes))
    steps = Steps.of(config, micro)
    step_flops = config.gradient_accumulation_steps * training_flops(
        shape, mean, mean.labelled, config.gradient_checkpointing
    )
    valid = interactions.histories("valid")
    asked += min(args.valid_cases, len(valid)) * steps.evaluations(config)
    ranking = 0.0
    if asked and len(valid):
        tokens = mean_prompt_tokens(template, valid, config.seed)
        ranking = asked / launch.processes
        ranking *= beam_flops(shape, tokens, DEFAULT_BEAMS, index.semantic_ids.depth)
    device_flops = steps.total * step_flops + ranking
    half = bool(mixed_dtype(config)) or args.dtype != "float32"
    return Plan(
        command=command,
        shape=shape,
        launch=launch,
        facts={
            **model_facts(shape, launch),
            **_data_facts(volume, batches, config, launch),
            "steps": f"{steps.epoch:,} an epoch, {steps.total:,} in all",
            "FLOPs": f"{scientific(step_flops * launch.processes)} a step, "
            f"{scientific(step_flops * launch.processes * steps.epoch)} an epoch, "
            f"{scientific(device_flops * launch.processes)} in all, of which ranking "
            f"{ranking / device_flops:.1%}",
        },
        figures={
            "rows": volume.rows.value,
            "tokens": volume.tokens.value,
            "tokens_error": volume.tokens.error,
            "labels": volume.labels.value,
            "steps": steps.total,
            "flops_step": step_flops * launch.processes,
            "flops": device_flops * launch.processes,
        },
        memory=memory,
        device_flops=device_flops,
        cpu_flops=device_flops,
        half=half,
        remedies=remedies(
            args.training, args.dtype != "float32", config, launch, "fsdp2.yaml", not args.load_in_4bit
        ),
    )


def mixed_dtype(config: Any) -> torch.dtype | None:
    """What TRL's configuration autocasts to."""
    return torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of an epoch and of the run."""

    epoch: int
    total: int

    @staticmethod
    def of(config: Any, micro_batches: int) -> "Steps":
        """As Trainer counts them from an epoch's batches of one device."""
        epoch = max(math.ceil(micro_batches / config.gradient_accumulation_steps), 1)
        total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * epoch)
        return Steps(epoch, total)

    def evaluations(self, config: Any) -> int:
        """How often Trainer evaluates."""
        strategy = str(getattr(config.eval_strategy, "value", config.eval_strategy))
        if strategy == "steps":
            every = config.eval_steps or config.logging_steps
            return int(self.total // (every if every >= 1 else every * self.total))
        return math.ceil(self.total / self.epoch) if strategy == "epoch" else 0


def mean_prompt_tokens(template: PromptTemplate, histories: Histories, seed: int) -> float:
    """Tokens of a seqrec prompt, on average over a sample."""
    cases = sample_cases(histories, 200, seed)
    return float(np.mean([len(template.seqrec_prompt(cases.history(case))) for case in range(len(cases))]))


def _data_facts(volume: Volume, batches: Batches, config: Any, launch: Launch) -> dict[str, str]:
    mean, largest, size = batches.mean, batches.largest, config.per_device_train_batch_size
    a_step = size * launch.processes * config.gradient_accumulation_steps
    exact = "counted" if not volume.rows.error else f"estimated from {volume.rendered:,} rows"
    read = volume.tokens.value / volume.rows.value * min(size, len(volume.sample))
    return {
        "an epoch": f"{volume.rows} rows, {volume.tokens} tokens, {volume.labels} with loss ({exact})",
        "batches": f"{size} rows a device, as {mean.rows:.1f} x {mean.width:.0f}: {mean.cells:,.0f} "
        f"tokens computed for {read:,.0f} of the examples; largest {largest.rows:.0f} x "
        f"{largest.width:.0f}; {a_step} rows a step",
    }
