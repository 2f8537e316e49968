"""A GRPO step that reads each prompt once, against TRL's and against MiniOneRec's loop.

    python benchmarks/grpo_step.py [--quick] [--prompts 1] [--completions 16] [--prompt_tokens 200]

A Qwen3 of 8 layers x 512 with a vocabulary of 32,000 (41 M parameters), random weights, fp32, full training;
4,000 random items under 3 x 256 codes (64 at the first level). CPU seconds, medians over interleaved runs.

`update` is forward and backward of one batch of `prompts` groups, the same for all: TRL's GRPOTrainer as it
is on a CPU, whose head scores every position; the same scoring labelled positions alone, as TRL does on GPUs;
ours; and ours under `log_probs: trie`, which is another loss. Memory is the peak of one such step in a forked
process, and what of it was not there before.

`loop` is rollout, reference and update. MiniOneRec's is transformers' constrained beam search (`num_beams`
and `num_return_sequences` = completions, under the fastest `prefix_allowed_tokens_fn` there is, a dict made
beforehand) as the rollout of TRL's GRPOTrainer. Both loops must find the same lists, and all gradients of an
update agree.

Limit: multiply-adds by `sft.plan_flops`, per weight of the layers 6 FLOPs a token, of the head 8 a scored
position (TRL's head computes its logits twice), attention per pair of tokens. TRL computes G (P + L) tokens,
of which a causal kernel attends to half of all pairs; ours P - 1 + G L under a mask that no kernel skips.
What goes through memory token by token (norms, activations, TRL's log-softmax in torch) is not counted.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging
from tree_beam import (
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    LAYERS,
    MLP,
    VOCABULARY,
    WIDTH,
    children_by_prefix,
    transformers_beam,
)
from trl import GRPOConfig, GRPOTrainer

from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from rl.grpo_trainer import GroupedGRPOTrainer
from rl.rollout import Rollout
from rl.rollout_options import RolloutOptions
from rl.update_options import UpdateOptions
from serve.decoding.trie_step import DeviceTrie
from sft.models.scratch import train_tokenizer
from sft.plan_flops import Batch, training_flops
from sft.plan_model import shape_of
from sft.vocabulary import extend_tokenizer
from sid_builder.artifact import code_version
from sid_builder.catalog import Catalog
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex

CODES = (64, 256, 256)
TRL, TRL_LABELLED, OURS, OURS_TRIE = "trl", "trl, labelled positions", "ours", "ours, trie"


class Setup:
    """One model, and a trainer of each kind around it."""

    def __init__(self, arguments: argparse.Namespace, directory: str) -> None:
        self.arguments, self.directory = arguments, directory
        rng = np.random.default_rng(arguments.seed)
        drawn = np.stack([rng.integers(0, size, 4000) for size in CODES], axis=1).astype(np.int32)
        codes = rng.permutation(np.unique(drawn, axis=0))
        rows = [{"item_id": str(item), "title": f"Item {item}"} for item in range(len(codes))]
        catalog = Catalog.from_rows(rows)
        index = SidIndex(catalog, SemanticIds(codes, CODES), np.zeros(len(codes), dtype=np.int64))
        self.tokenizer = train_tokenizer(catalog.titles, 512)
        extend_tokenizer(self.tokenizer, index.semantic_ids)
        self.template = PromptTemplate(PromptPack.load("plain"), self.tokenizer, index)
        self.trie = DeviceTrie(index.trie, self.template.vocabulary)
        torch.manual_seed(arguments.seed)
        full = (WIDTH, MLP, LAYERS, VOCABULARY)
        width, mlp, layers, vocabulary = (128, 384, 2, 8000) if arguments.quick else full
        config = Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_SIZE,
            tie_word_embeddings=True,
        )
        Qwen3ForCausalLM(config).save_pretrained(directory)  # TRL loads its reference from there
        self.model = Qwen3ForCausalLM.from_pretrained(directory)
        self.rows = self.make_rows(rng)
        self.rollout_seconds, self.found = 0.0, [[0]]

    def make_rows(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Each prompt once: random codes of the last level, as many as it takes. Targets are found later."""
        ids, rows = self.template.index.semantic_ids, []
        framed = len(self.template.encode_prompt(ids.token(2, 0))) - 1
        for _ in range(self.arguments.prompts):
            drawn = rng.integers(0, CODES[2], self.arguments.prompt_tokens - framed)
            text = "".join(ids.token(2, int(code)) for code in drawn)
            assert len(self.template.encode_prompt(text)) == self.arguments.prompt_tokens
            rows.append({"prompt": self.template.messages(text), "history": [0], "target_item": 0})
        return rows

    def config(self) -> GRPOConfig:
        return GRPOConfig(
            self.directory,
            per_device_train_batch_size=self.arguments.prompts * self.arguments.completions,
            num_generations=self.arguments.completions,
            max_completion_length=len(CODES),
            beta=1e-3,
            loss_type="grpo",
            mask_truncated_completions=False,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )

    def trainer(self, kind: Any, rollout: Callable, **options: Any) -> Any:
        """A trainer whose rollouts are timed, and their completions kept."""

        def watched(prompts: list, trainer: Any) -> dict[str, list]:
            started = time.process_time()
            output = rollout(prompts, trainer)
            self.rollout_seconds, self.found = time.process_time() - started, output["completion_ids"]
            return output

        made = kind(
            model=self.model,
            args=self.config(),
            reward_funcs=self.reward,
            train_dataset=Dataset.from_list(self.rows),
            processing_class=self.tokenizer,
            rollout_func=watched,
            **options,
        )
        made.current_gradient_accumulation_steps = 1
        made.model.train()
        return made

    def reward(self, completion_ids: list[list[int]], target_item: list[int], **_: Any) -> list[float]:
        asked = [self.template.sid_ids[item] for item in target_item]
        return [float(ids == truth) for ids, truth in zip(completion_ids, asked, strict=True)]

    def ours(self, log_probs: str = "vocabulary") -> GroupedGRPOTrainer:
        rollout = Rollout(self.template, RolloutOptions(), exclude_history=False)
        update = UpdateOptions(log_probs=log_probs)  # type: ignore[arg-type]
        return self.trainer(GroupedGRPOTrainer, rollout, update=update, template=self.template)

    def minionerec(self) -> GRPOTrainer:
        table = children_by_prefix(self.trie)

        def rollout(prompts: list, trainer: Any) -> dict[str, list]:
            size = self.arguments.completions
            asked = [self.template.encode_prompt(prompt[-1]["content"]) for prompt in prompts]
            trainer.model.eval()
            found = transformers_beam(trainer.model, torch.tensor(asked[::size]), table, size)
            trainer.model.train()
            return {"prompt_ids": asked, "completion_ids": found.flatten(0, 1).tolist(), "logprobs": None}

        return self.trainer(GRPOTrainer, rollout)

    def batch(self) -> dict[str, torch.Tensor]:
        """Random SIDs with random advantages, as if they had been rolled out and scored."""
        prompts, completions = self.arguments.prompts, self.arguments.completions
        generator = torch.Generator().manual_seed(self.arguments.seed)
        asked = torch.tensor([self.template.encode_prompt(row["prompt"][-1]["content"]) for row in self.rows])
        leaves = torch.randint(self.trie.trie.num_leaves, (prompts * completions,), generator=generator)
        sids = [self.template.vocabulary.encode(codes) for codes in self.trie.trie.codes_ML[leaves.numpy()]]
        ids, completion_ids = asked.repeat_interleave(completions, dim=0), torch.tensor(sids)
        return {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": completion_ids,
            "completion_mask": torch.ones_like(completion_ids),
            "advantages": torch.randn(len(ids), generator=generator),
            "ref_per_token_logps": torch.full(completion_ids.shape, -np.log(VOCABULARY)),
            "num_items_in_batch": torch.tensor(completion_ids.numel()),
        }


def update(trainer: Any, batch: dict[str, torch.Tensor], labelled: bool = False) -> None:
    """Forward and backward.

    Args:
        labelled: TRL asks for Triton to decide whether its head leaves out what has no label.
    """
    trainer.model.zero_grad()
    with mock.patch("trl.trainer.utils._use_triton", lambda device: labelled):
        trainer.compute_loss(trainer.model, batch).backward()


def loop(trainer: Any, setup: Setup) -> None:
    """Rollout, reference and update of one generation batch."""
    rows = [dict(row) for row in setup.rows for _ in range(setup.arguments.completions)]
    trainer._step, trainer._buffered_inputs = 0, None
    update(trainer, trainer._prepare_inputs(rows))


def cpu_seconds(run: Callable[..., None], *arguments: Any) -> float:
    started = time.process_time()
    run(*arguments)
    return time.process_time() - started


def peak_memory(run: Callable[[], None]) -> dict[str, int]:
    """MiB of a process forked for one run: its peak, and by how much that is above what it began with."""

    def child(sent: Any) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sent.send({"peak_mib": round(peak / 1024), "step_mib": round((peak - before) / 1024)})

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=child, args=(sender,)).start()
    return receiver.recv()


def flops(setup: Setup) -> dict[str, float]:
    """Of one update, by kind."""
    prompts, completions = setup.arguments.prompts, setup.arguments.completions
    shape, tokens, labelled = shape_of(setup.model), setup.arguments.prompt_tokens, completions * len(CODES)
    width, cells = tokens + len(CODES), completions * (tokens + len(CODES))
    apart = Batch(completions, width, cells, cells * width / 2, labelled)
    together = Batch.of(1, tokens - 1 + labelled, labelled)
    scored = {TRL: (apart, cells), TRL_LABELLED: (apart, labelled), OURS: (together, labelled)}
    return {name: prompts * training_flops(shape, *batch, False) for name, batch in scored.items()}


def measure_update(setup: Setup, trl: GRPOTrainer, ours: dict[str, GroupedGRPOTrainer], repeats: int) -> dict:
    """Memory first, while no step has been taken in this process."""
    batch = setup.batch()
    runs: dict[str, Callable[[], None]] = {
        TRL: lambda: update(trl, batch),
        TRL_LABELLED: lambda: update(trl, batch, labelled=True),
        OURS: lambda: update(ours[OURS], batch),
        OURS_TRIE: lambda: update(ours[OURS_TRIE], batch),
    }
    memory = {name: peak_memory(run) for name, run in runs.items()}
    gradients = {}
    for name, run in runs.items():
        run()
        gradients[name] = torch.cat([parameter.grad.flatten() for parameter in setup.model.parameters()])
    expected = gradients[TRL]
    far = {name: (found - expected).abs().max() / expected.abs().max() for name, found in gradients.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name] += [cpu_seconds(run) for _ in range(1 if name.startswith("trl") else 3)]
    median = {name: statistics.median(values) for name, values in times.items()}
    limit = flops(setup)
    return {
        "speedup": round(median[TRL] / median[OURS], 1),
        "speedup_labelled": round(median[TRL_LABELLED] / median[OURS], 1),
        "limit": {name: round(value / limit[OURS], 1) for name, value in limit.items()},
        "gflops": {name: round(value / 1e9, 1) for name, value in limit.items()},
        "cpu_seconds": {name: round(value, 3) for name, value in median.items()},
        "runs": {name: len(values) for name, values in times.items()},
        "memory": memory,
        "gradients_apart": {name: float(far[name]) for name in (TRL_LABELLED, OURS)},
    }


def measure_loop(setup: Setup, minionerec: GRPOTrainer, ours: GroupedGRPOTrainer, repeats: int) -> dict:
    size, index = setup.arguments.completions, setup.template.index
    loop(ours, setup)
    for number, row in enumerate(setup.rows):  # the third of each list, so that no group is without a hit
        codes = setup.template.vocabulary.decode(setup.found[number * size + 2])
        row["target_item"] = int(index.semantic_ids.items_of(codes)[0])
    same, trainers = True, {"minionerec": minionerec, "ours": ours}
    times: dict[str, list[float]] = {"minionerec": [], "ours": []}
    rollouts: dict[str, list[float]] = {"minionerec": [], "ours": []}
    for _ in range(repeats):
        lists = []
        for name, trainer in trainers.items():
            times[name].append(cpu_seconds(loop, trainer, setup))
            rollouts[name].append(setup.rollout_seconds)
            lists.append(setup.found)
        same &= lists[0] == lists[1]
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "same_lists": same,
        "speedup": round(median["minionerec"] / median["ours"], 1),
        "cpu_seconds": {name: round(value, 3) for name, value in median.items()},
        "of_these_rollout": {name: round(statistics.median(part), 3) for name, part in rollouts.items()},
        "runs": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model, one repeat: under 45 s")
    parser.add_argument("--prompts", type=int, default=1, help="groups of a batch")
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--prompt_tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=1, help="of one, CPU seconds are wall seconds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    with tempfile.TemporaryDirectory(prefix="grpo_step_") as directory:
        setup = Setup(arguments, directory)
        minionerec = setup.minionerec()
        ours = {OURS: setup.ours(), OURS_TRIE: setup.ours("trie")}
        result = {
            "benchmark": "grpo_step",
            "update": measure_update(setup, minionerec, ours, repeats),
            "loop": measure_loop(setup, minionerec, ours[OURS], repeats),
            "bars": {"update": 6, "loop": 10},
            "parameters": sum(parameter.numel() for parameter in setup.model.parameters()),
            "config": vars(arguments),
            "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__},
            "code": code_version(),
        }
    speedups = result["update"]["speedup"], result["loop"]["speedup"]
    print("update: {} x TRL's, whole loop: {} x".format(*speedups))
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
