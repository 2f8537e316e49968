"""A model directory with a tiny model in it, sequences it can learn, GRPO trainers on it, and what a rollout
sees of a trainer.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from rl import train_grpo
from rl.arguments import GRPOArguments
from rl.rollout_options import take_rollout
from rl.update_options import check_update
from serve.decoding.recommender import Recommender
from sft.model_directory import write_model_directory
from sid_builder import cli
from sid_builder.interactions import Interactions
from tests.builders import make_index, make_recommender


def make_model_dir(
    root: Path, num_users: int = 40, pack: str = "plain", seed: int = 0, tied: bool = True
) -> Path:
    """60 items under 3 x 6 codes (two of them share an SID), users of 6 items without repeats."""
    rng = np.random.default_rng(seed)
    codes = np.array([(a, b, c) for a in range(6) for b in range(6) for c in range(6)])
    codes = codes[rng.choice(len(codes), 60, replace=False)]
    codes[59] = codes[58]
    recommender = make_recommender(make_index(codes, (6, 6, 6)), pack=pack, tied=tied, seed=seed)
    sequences = [rng.choice(60, 6, replace=False).astype(np.int32) for _ in range(num_users)]
    interactions = Interactions.leave_one_out([f"u{n}" for n in range(num_users)], sequences)
    (root / "interactions").mkdir(parents=True)
    interactions.save(root / "interactions")
    path = root / "model"
    write_model_directory(
        path,
        recommender.model,
        recommender.tokenizer,
        recommender.template.pack,
        recommender.index,
        root / "interactions",
    )
    return path


def grpo_flags(model_dir, output_dir, *flags: str) -> list[str]:
    """A command line of `rl.train_grpo`: micro-batches of two groups of 8, on the CPU."""
    common = f"--model_name_or_path {model_dir} --output_dir {output_dir} --use_cpu true --bf16 false"
    sizes = "--per_device_train_batch_size 16 --gradient_accumulation_steps 2 --num_generations 8"
    common += " --disable_tqdm true --valid_cases 20"
    return [*common.split(), *sizes.split(), *flags]


def grpo_trainer(model_dir, output_dir, *flags: str, policy: Recommender | None = None):
    """Trainer and policy of that command line; a given policy instead of the directory's."""
    own, args = cli.parse(
        GRPOArguments,
        grpo_flags(model_dir, output_dir, *flags),
        lazy=["trl:GRPOConfig"],
        own_defaults=train_grpo.OWN_DEFAULTS,
    )
    take_rollout(own.rollout, args)
    check_update(own.update, args, own.training)
    policy = policy or Recommender.load(model_dir, device="cpu")
    return train_grpo.build_trainer(policy, own, args), policy


def rows_with_hits(trainer, policy):
    """A generation batch of four groups of 8 whose targets stand at beam ranks 0, 3 and 7, and one that its
    beam misses.
    """
    rows = next(iter(trainer.get_train_dataloader()))
    trainer.rollout_rows = rows
    completions = trainer.rollout_func([row["prompt"] for row in rows], trainer)["completion_ids"]
    found = [policy.template.vocabulary.decode(ids) for ids in completions]
    for group, rank in enumerate((0, 3, 7, None)):
        part = slice(group * 8, (group + 1) * 8)
        ids = policy.index.semantic_ids
        missed = next(
            item for item, codes in enumerate(ids.codes_NL.tolist()) if tuple(codes) not in found[part]
        )
        item = missed if rank is None else ids.items_of(found[part][rank])[0]
        for row in rows[part]:
            row["target_item"] = item
    return rows


class RolloutTrainer:
    """What `rl.rollout.Rollout` reads of a trainer, for `cases` repeated `size` times, group after group."""

    def __init__(self, model, cases, size, process=0, step=0, dataset=(), rewards=()):
        self.whole_policy = lambda: model
        self.rollout_rows = [dict(case) for case in cases for _ in range(size)]
        self.num_generations = size
        self.accelerator = SimpleNamespace(process_index=process)
        self.args, self.state = SimpleNamespace(seed=3), SimpleNamespace(global_step=step)
        self.train_dataset, self.reward_funcs = dataset, list(rewards)
        self.reward_weights = torch.ones(len(self.reward_funcs))
        self.multi_objective_aggregation = "sum_then_normalize"
        self.shares = {}

    def log_share(self, name, share):
        self.shares.setdefault(name, []).append(share)

    def roll(self, rollout):
        return rollout([row["prompt"] for row in self.rollout_rows], self)
