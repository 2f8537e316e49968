"""Preference rows over the tests' tiny model, and DPO trainers on them."""

import numpy as np
from datasets import Dataset

from rl import train_dpo
from rl.arguments import DPOArguments
from serve.decoding.recommender import Recommender
from sid_builder import cli


def dpo_flags(model_dir, output_dir, *flags: str) -> list[str]:
    """A command line of `rl.train_dpo` on the CPU."""
    common = f"--model_name_or_path {model_dir} --output_dir {output_dir} --use_cpu true --bf16 false"
    common += " --disable_tqdm true --save_strategy no"
    sizes = "--per_device_train_batch_size 8 --valid_cases 20 --max_prompts 40"
    return [*common.split(), *sizes.split(), *flags]


def preference_rows(policy: Recommender, counts: list[int], seed: int = 0) -> Dataset:
    """A row per count: a ragged prompt, and so many rejected items that are not the chosen one's."""
    rng, template = np.random.default_rng(seed), policy.template
    rows = []
    for count in counts:
        items = rng.choice(58, 1 + count, replace=False)  # 58 and 59 share an SID
        answers = [[*template.sid_ids[int(item)], *template.end_ids] for item in items]
        history = rng.choice(58, int(rng.integers(1, 6)), replace=False)
        prompt = template.seqrec_prompt(history)
        rows.append({"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1:]})
    return Dataset.from_list(rows)


def dpo_trainer(model_dir, output_dir, rows: Dataset, *flags: str, shared_prompt: bool = True):
    """A trainer on these rows, whose weights are the model directory's plus noise: not the reference's."""
    from rl.dpo_trainer import TokenDPOTrainer

    own, args = cli.parse(
        DPOArguments,
        dpo_flags(model_dir, output_dir, *flags),
        lazy=["trl:DPOConfig"],
        own_defaults=train_dpo.OWN_DEFAULTS,
    )
    policy = Recommender.load(model_dir, device="cpu")
    return TokenDPOTrainer(
        model=policy.model,
        args=args,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=own.peft_config(),
        shared_prompt=shared_prompt,
    )


def step_of(trainer) -> tuple[float, dict, dict]:
    """Loss, gradients by name and metrics of one batch of all rows, at weights apart from the start."""
    import torch

    generator = torch.Generator().manual_seed(1)
    trainer.model.train()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), gradients, metrics
