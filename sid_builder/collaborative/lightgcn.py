"""LightGCN: users and items as averages of their neighbourhoods in the train graph.

Legend: U users, N items, D dimensions, p pairs of one batch, b cases.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sid_builder.collaborative import LightGCNConfig
from sid_builder.collaborative.epochs import TrainingLog, cases_to_choose_by, checkpoint_path, train_epochs
from sid_builder.collaborative.item_ranking import ndcg_at_10
from sid_builder.collaborative.user_item_graph import SparseProduct, UserItemGraph, torch_csr
from sid_builder.embedders.model_files import choose_device
from sid_builder.errors import InputError
from sid_builder.interactions import Histories, Interactions


class LightGCN(nn.Module):
    """Free vectors of users and items, and what steps along the graph make of them (He et al. 2020).

    E_k+1 = D^-1/2 A D^-1/2 E_k with A the adjacency of users and items and D its degrees; the result is the
    mean of E_0 .. E_layers.
    """

    def __init__(self, config: LightGCNConfig, graph: UserItemGraph) -> None:
        super().__init__()
        self.config, self.graph = config, graph
        self.users = nn.Embedding(graph.num_users, config.dim)
        self.items = nn.Embedding(graph.num_items, config.dim)
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=0.1)
        device = choose_device(config.device)
        matrix = graph.normalised()
        self.to_users, self.to_items = torch_csr(matrix, device), torch_csr(matrix.T.tocsr(), device)
        self.to(device)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of all users [U, D] and items [N, D]; their products are the scores."""
        users_UD, items_ND = self.users.weight, self.items.weight
        sum_UD, sum_ND = users_UD, items_ND
        for _ in range(self.config.layers):
            users_UD, items_ND = (
                SparseProduct.apply(self.to_users, self.to_items, items_ND),
                SparseProduct.apply(self.to_items, self.to_users, users_UD),
            )
            sum_UD, sum_ND = sum_UD + users_UD, sum_ND + items_ND
        return sum_UD / (self.config.layers + 1), sum_ND / (self.config.layers + 1)

    @torch.inference_mode()
    def score_cases(self, cases: Histories) -> np.ndarray:
        """Scores float32 [b, N] of all items for the users of the cases; their histories are not read."""
        users_UD, items_ND = self()
        users = torch.from_numpy(self.graph.user_of_sequence_S[cases.sequence_C]).to(users_UD.device)
        return (users_UD[users] @ items_ND.T).cpu().numpy()

    @torch.inference_mode()
    def item_vectors(self) -> np.ndarray:
        """Float32 [N, D] after propagation; an item that is not in train gets the mean of the others.

        Such an item has no edge and is never drawn as a negative, so its own vector is where it was
        initialised; the mean says just that it is unknown (zero once centred).
        """
        vectors_ND = self()[1].cpu().numpy()
        seen = self.graph.seen_items
        result_ND = np.tile(vectors_ND[seen].mean(axis=0), (len(vectors_ND), 1))
        result_ND[seen] = vectors_ND[seen]
        return result_ND


def train_lightgcn(
    interactions: Interactions,
    num_items: int,
    config: LightGCNConfig,
    seed: int = 0,
    work_dir: Path | None = None,
) -> tuple[LightGCN, TrainingLog]:
    """A model trained on `interactions`' train pairs; valid targets do no more than choose the epoch.

    Deterministic and resumable as `train_sasrec` is.

    Raises:
        InputError: if train has no pairs, every user has every item (nothing to tell apart), or there are no
        valid cases although `patience` is set.
    """
    graph = UserItemGraph.of(interactions, num_items)
    if len(graph.trainable_pairs) == 0:
        raise InputError(
            f"interactions: all users have all {len(graph.seen_items)} items of train, so nothing tells them "
            "apart; use another embedder"
        )
    valid = cases_to_choose_by(interactions, config, seed)
    data = (graph.users_P, graph.items_P, graph.user_of_sequence_S, valid.sequence_C, valid.targets_C)
    checkpoint = checkpoint_path(work_dir, "lightgcn", config, seed, np.array(num_items), *data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LightGCN(config, graph)
    trainee = _Trainee(model, valid, seed)
    return model, train_epochs(trainee, config.epochs, config.patience, seed, checkpoint, "lightgcn")


class _Trainee:
    def __init__(self, model: LightGCN, valid: Histories, seed: int) -> None:
        self.model, self.valid, self.seed = model, valid, seed
        self.optimizer = torch.optim.Adam(model.parameters(), lr=model.config.learning_rate)

    def run_epoch(self, epoch: int) -> float:
        rng, graph = np.random.default_rng([self.seed, epoch]), self.model.graph
        order = rng.permutation(graph.trainable_pairs)
        total = 0.0
        for start in range(0, len(order), self.model.config.batch_pairs):
            pairs_p = order[start : start + self.model.config.batch_pairs]
            negatives_p = graph.negatives(pairs_p, rng)
            total += len(pairs_p) * self._step(graph.users_P[pairs_p], graph.items_P[pairs_p], negatives_p)
        return total / len(order)

    def _step(self, users_p: np.ndarray, items_p: np.ndarray, negatives_p: np.ndarray) -> float:
        """One step of BPR: -log sigmoid(score of the pair - score of the negative), plus the L2 term."""
        device = self.model.users.weight.device
        users, items, negatives = (torch.from_numpy(x).to(device) for x in (users_p, items_p, negatives_p))
        users_UD, items_ND = self.model()
        user_pD = F.embedding(users, users_UD)
        margin_p = (user_pD * (F.embedding(items, items_ND) - F.embedding(negatives, items_ND))).sum(dim=1)
        free = (self.model.users(users), self.model.items(items), self.model.items(negatives))
        squares = sum(vectors.square().sum() for vectors in free) / (2 * len(users_p))
        loss = -F.logsigmoid(margin_p).mean()
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.model.config.l2 * squares).backward()
        self.optimizer.step()
        return loss.item()

    def valid_ndcg(self) -> float:
        return ndcg_at_10(self.model.score_cases, self.valid, self.model.graph.num_items)
