"""The fixed small decoder that benchmarks/quantizers.py trains on every quantizer's SIDs.

A Qwen3 from its config over nothing but SID tokens: a user's train items, oldest first, as one row of codes,
every code predicted from those before it. No template, no titles: a run is minutes of one CPU core, and what
is compared is how well the SIDs can be predicted. Ranking is `serve`'s own: tree beam, 50 beams, full
catalogue, history excluded.

    python benchmarks/sid_decoder.py --sid_dir out/beauty/sids [--split valid]

Legend: S users, T tokens of a row, V tokens of the vocabulary.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from prompts.vocabulary import SidVocabulary
from serve.decoding.trie_step import DeviceTrie
from serve.evaluation.metrics import RankedCases, metrics_of_ranks
from serve.evaluation.model_ranking import rank_targets
from sft.models.scratch import ScratchConfig, build_model
from sid_builder.interactions import Interactions
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex


@dataclass(frozen=True)
class DecoderConfig:
    """Chosen once, by valid NDCG@10 on Beauty with `rq_kmeans`; the same for every quantizer and seed."""

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    intermediate_size: int = 192
    max_history: int = 50
    epochs: int = 15
    users_per_batch: int = 64
    learning_rate: float = 4e-3
    warm_up_steps: int = 100
    weight_decay: float = 0.1


class SidRows:
    """Items as token ids: the levels' codes one after the other, then one token that starts every row."""

    def __init__(self, sids: SemanticIds, max_history: int) -> None:
        offsets = np.concatenate([[0], np.cumsum(sids.level_sizes)])
        self.vocabulary = SidVocabulary(
            tuple(offsets[level] + np.arange(size) for level, size in enumerate(sids.level_sizes))
        )
        self.start_id = int(offsets[-1])
        self.max_history = max_history
        self._tokens = [self.vocabulary.encode(codes) for codes in sids.codes_NL]

    def seqrec_prompt(self, history: np.ndarray, wording: int = 0) -> list[int]:
        """Token ids of a history's newest items; what `rank_targets` calls a template for."""
        newest = history[-self.max_history :].tolist()
        return [self.start_id, *(token for item in newest for token in self._tokens[item])]


def train(index: SidIndex, interactions: Interactions, config: DecoderConfig, seed: int) -> Any:
    """A model trained on every user's train items, by next-code cross-entropy."""
    rows = SidRows(index.semantic_ids, config.max_history)
    bounds = zip(interactions.indptr_S1[:-1], interactions.train_lo_S, interactions.train_hi_S, strict=True)
    sequences = [interactions.items_I[start + low : start + high] for start, low, high in bounds]
    ids = [torch.tensor(rows.seqrec_prompt(sequence)) for sequence in sequences if len(sequence)]
    pad_id = rows.start_id + 1
    shape = ScratchConfig(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
    )
    model = build_model(shape, pad_id + 1, pad_id, pad_id, seed)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(ids) // config.users_per_batch)

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + np.cos(np.pi * step / steps))
        return float(min((step + 1) / config.warm_up_steps, cosine))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng = np.random.default_rng(seed)
    lengths_S = np.array([len(row) for row in ids])
    bar = tqdm(total=steps, desc="train decoder", unit="step", mininterval=5)
    for _ in range(config.epochs):
        for users in _batches(lengths_S, config.users_per_batch, rng):
            tokens_BT = torch.nn.utils.rnn.pad_sequence([ids[user] for user in users], True, pad_id)
            # Padding stands on the right, so under a causal mask no token sees it.
            logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
            loss = functional.cross_entropy(
                logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), ignore_index=pad_id
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    bar.close()
    return model.eval()


def _batches(lengths_S: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Users in random batches of like length: sorted inside stretches of 20 batches, then shuffled."""
    order = rng.permutation(len(lengths_S))
    stretches = [order[low : low + 20 * size] for low in range(0, len(order), 20 * size)]
    alike = np.concatenate([part[np.argsort(lengths_S[part], kind="stable")] for part in stretches])
    batches = [alike[low : low + size] for low in range(0, len(alike), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def rank(
    model: Any, index: SidIndex, interactions: Interactions, config: DecoderConfig, split: str
) -> RankedCases:
    """Ranks of a split's targets among all items."""
    rows = SidRows(index.semantic_ids, config.max_history)
    recommender = SimpleNamespace(
        model=model, index=index, template=rows, trie=DeviceTrie(index.trie, rows.vocabulary)
    )
    histories = interactions.histories(split)  # type: ignore[arg-type]
    return rank_targets(recommender, histories, progress=False)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sid_dir", required=True, help="artefact of sid_builder.build")
    parser.add_argument("--split", default="valid", choices=["valid", "test"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", help="where to write the ranks of the split's targets, .npy")
    for name, default in asdict(DecoderConfig()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    arguments = parser.parse_args()
    config = DecoderConfig(**{name: getattr(arguments, name) for name in asdict(DecoderConfig())})
    index = SidIndex.load(Path(arguments.sid_dir) / "sid_index")
    interactions = Interactions.load(Path(arguments.sid_dir) / "interactions")
    started = time.perf_counter()
    model = train(index, interactions, config, arguments.seed)
    trained = time.perf_counter()
    ranked = rank(model, index, interactions, config, arguments.split)
    if arguments.ranks:
        np.save(arguments.ranks, ranked.item_rank_C)
    result = {
        "benchmark": "sid_decoder",
        "decoder": asdict(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "split": arguments.split,
        "metrics": metrics_of_ranks(ranked.item_rank_C),
        "coverage@10": ranked.coverage,
        "train_seconds": round(trained - started),
        "rank_seconds": round(ranked.seconds),
    }
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
