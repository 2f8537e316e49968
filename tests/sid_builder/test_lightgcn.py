"""LightGCN: the graph it is given, the propagation, and that it finds communities."""

import dataclasses

import numpy as np
import pytest
import torch

from sid_builder import EMBEDDERS, cli
from sid_builder.catalog import Catalog
from sid_builder.collaborative import LightGCNConfig, lightgcn
from sid_builder.collaborative.item_ranking import ndcg_at_10
from sid_builder.collaborative.lightgcn import LightGCN, train_lightgcn
from sid_builder.collaborative.user_item_graph import SparseProduct, UserItemGraph, torch_csr
from sid_builder.embedders import ItemData
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.registry import options_class, resolve

COMMUNITIES, SIZE, NUM_USERS = 4, 20, 200
NUM_ITEMS, UNSEEN = COMMUNITIES * SIZE + 1, COMMUNITIES * SIZE
SMALL = LightGCNConfig(dim=16, layers=2, learning_rate=2e-2, batch_pairs=512, epochs=8, patience=None)


def communities():
    """200 users, each at home in one of four communities of 20 items and once a guest in another."""
    rng = np.random.default_rng(0)
    sequences = []
    for user in range(NUM_USERS):
        home = SIZE * (user % COMMUNITIES) + rng.permutation(SIZE)[: rng.integers(6, 10)]
        sequences.append(rng.permutation(np.append(home, rng.integers(UNSEEN))))
    sequences = [np.unique(s)[rng.permutation(len(np.unique(s)))] for s in sequences]
    return Interactions.leave_one_out([f"u{user}" for user in range(NUM_USERS)], sequences)


@pytest.fixture(scope="module")
def shop():
    return communities()


@pytest.fixture(scope="module")
def trained(shop):
    return train_lightgcn(shop, NUM_ITEMS, SMALL, seed=3)


def assert_same_weights(first, second):
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


# The graph


def test_the_graph_holds_train_and_nothing_else(shop):
    graph = UserItemGraph.of(shop, NUM_ITEMS)
    train_S = [shop.items_I[shop.indptr_S1[s] :][: shop.train_hi_S[s]].tolist() for s in range(NUM_USERS)]
    wanted = {(user, item) for user, items in enumerate(train_S) for item in items}
    pairs = list(zip(graph.users_P.tolist(), graph.items_P.tolist(), strict=True))
    assert set(pairs) == wanted and pairs == sorted(wanted)
    matrix = graph.normalised().toarray()
    binary = np.zeros_like(matrix)
    binary[graph.users_P, graph.items_P] = 1
    degrees = np.outer(binary.sum(axis=1), binary.sum(axis=0))
    np.testing.assert_allclose(matrix, binary / np.sqrt(np.maximum(degrees, 1)), rtol=1e-6)


def test_rows_of_one_user_belong_together():
    sequences = [np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), np.array([0, 8, 9, 10])]
    graph = UserItemGraph.of(Interactions.leave_one_out(["a", "b", "a"], sequences), 11)
    assert graph.num_users == 2 and graph.user_of_sequence_S.tolist() == [0, 1, 0]
    pairs = list(zip(graph.users_P.tolist(), graph.items_P.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 8), (1, 4), (1, 5)]


def test_negatives_are_uniform_over_what_the_user_left_out(shop):
    graph = UserItemGraph.of(shop, NUM_ITEMS)
    owned = set(zip(graph.users_P.tolist(), graph.items_P.tolist(), strict=True))
    rng = np.random.default_rng(0)
    pairs_p = graph.trainable_pairs
    drawn = graph.negatives(pairs_p, rng)
    assert not owned & set(zip(graph.users_P[pairs_p].tolist(), drawn.tolist(), strict=True))
    assert UNSEEN not in drawn
    many = graph.negatives(np.full(40_000, 7), rng)
    left_out = np.setdiff1d(graph.seen_items, graph.items_P[graph.users_P == graph.users_P[7]])
    items, counts = np.unique(many, return_counts=True)
    np.testing.assert_array_equal(items, left_out)
    assert abs(counts / 40_000 * len(left_out) - 1).max() < 0.2


def test_a_user_with_everything_has_no_negative():
    sequences = [np.append(np.arange(5), [5, 5]), np.array([1, 2, 5, 5])]
    interactions = Interactions.leave_one_out(["all", "some"], sequences)
    graph = UserItemGraph.of(interactions, 6)
    assert graph.users_P[graph.trainable_pairs].tolist() == [1, 1]
    assert set(graph.negatives(np.repeat(graph.trainable_pairs, 50), np.random.default_rng(0))) == {0, 3, 4}
    only = Interactions.leave_one_out(["all"], [np.append(np.arange(5), [5, 5])])
    with pytest.raises(InputError, match="all users have all 5 items of train"):
        train_lightgcn(only, 6, SMALL)


# The model


def test_propagation_is_the_papers(shop):
    torch.manual_seed(0)
    graph = UserItemGraph.of(shop, NUM_ITEMS)
    model = LightGCN(dataclasses.replace(SMALL, device="cpu"), graph)
    whole = torch.zeros((NUM_USERS + NUM_ITEMS, NUM_USERS + NUM_ITEMS))
    whole[:NUM_USERS, NUM_USERS:] = torch.from_numpy(graph.normalised().toarray())
    whole[NUM_USERS:, :NUM_USERS] = whole[:NUM_USERS, NUM_USERS:].T
    free = torch.cat([model.users.weight, model.items.weight]).detach().requires_grad_()
    wanted = (free + whole @ free + whole @ whole @ free) / 3
    users_UD, items_ND = model()
    torch.testing.assert_close(torch.cat([users_UD, items_ND]), wanted)
    ((users_UD**2).sum() + items_ND.sin().sum()).backward()
    ((wanted[:NUM_USERS] ** 2).sum() + wanted[NUM_USERS:].sin().sum()).backward()
    torch.testing.assert_close(torch.cat([model.users.weight.grad, model.items.weight.grad]), free.grad)


def test_a_sparse_product_has_the_dense_gradient(shop):
    matrix = UserItemGraph.of(shop, NUM_ITEMS).normalised()
    both = torch_csr(matrix, "cpu"), torch_csr(matrix.T.tocsr(), "cpu")
    dense = torch.randn(NUM_ITEMS, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = SparseProduct.apply(*both, dense)
    (out**2).sum().backward()
    full = torch.from_numpy(matrix.toarray())
    torch.testing.assert_close(out.detach(), full @ dense.detach())
    torch.testing.assert_close(dense.grad, 2 * full.T @ (full @ dense.detach()))


def test_neighbours_share_the_community_and_recall_beats_popularity(shop, trained):
    model, log = trained
    assert log.epochs[-1]["loss"] < 0.5 * log.epochs[0]["loss"]
    vectors_ND = model.item_vectors()[:UNSEEN]
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    similarity_NN = unit_ND @ unit_ND.T - 2 * np.eye(UNSEEN)
    nearest_NK = np.argsort(-similarity_NN, axis=1)[:, :10]
    assert (nearest_NK // SIZE == np.arange(UNSEEN)[:, None] // SIZE).mean() > 0.95
    cases = shop.histories("test")
    counts_N = shop.train_counts(NUM_ITEMS).astype(np.float32)
    ours = ndcg_at_10(model.score_cases, cases, NUM_ITEMS)
    popular = ndcg_at_10(lambda batch: np.tile(counts_N, (len(batch), 1)), cases, NUM_ITEMS)
    assert ours > 3 * popular > 0


def test_items_without_interactions_get_the_mean(trained):
    vectors_ND = trained[0].item_vectors()
    assert vectors_ND.shape == (NUM_ITEMS, 16) and vectors_ND.dtype == np.float32
    np.testing.assert_allclose(vectors_ND[UNSEEN], vectors_ND[:UNSEEN].mean(axis=0), atol=1e-6)


def test_valid_and_test_leave_no_trace(shop, trained):
    items_I = shop.items_I.copy()
    for split in ("valid", "test"):
        cases = shop.histories(split)
        items_I[shop.indptr_S1[cases.sequence_C] + cases.position_C] = UNSEEN
    model, _ = train_lightgcn(dataclasses.replace(shop, items_I=items_I), NUM_ITEMS, SMALL, seed=3)
    assert_same_weights(model, trained[0])


def test_weights_depend_on_the_seed_alone(shop, trained):
    again, _ = train_lightgcn(shop, NUM_ITEMS, SMALL, seed=3)
    assert_same_weights(again, trained[0])
    other, _ = train_lightgcn(shop, NUM_ITEMS, SMALL, seed=4)
    assert not torch.equal(other.items.weight, again.items.weight)


def test_an_interrupted_training_goes_on_to_the_same_weights(shop, tmp_path, monkeypatch):
    config, ran, run_epoch = dataclasses.replace(SMALL, patience=3), [], lightgcn._Trainee.run_epoch
    straight, log = train_lightgcn(shop, NUM_ITEMS, config, seed=3)

    def once_interrupted(self, epoch):
        if epoch == 2 and 2 not in ran:
            ran.append(epoch)
            raise KeyboardInterrupt
        ran.append(epoch)
        return run_epoch(self, epoch)

    monkeypatch.setattr(lightgcn._Trainee, "run_epoch", once_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_lightgcn(shop, NUM_ITEMS, config, 3, tmp_path)
    resumed, resumed_log = train_lightgcn(shop, NUM_ITEMS, config, 3, tmp_path)
    assert ran[:4] == [0, 1, 2, 2] and ran.count(0) == 1 and resumed_log == log
    assert_same_weights(resumed, straight)


def test_the_embedder_is_the_model(shop, trained):
    made = resolve(EMBEDDERS, "lightgcn", "embedder")
    options = cli.build_dataclass(options_class(made), dict(vars(SMALL)), "embedder_args")
    catalog = Catalog.from_rows([{"item_id": item} for item in range(NUM_ITEMS)])
    embedder = made(options, 3)
    np.testing.assert_array_equal(embedder.encode(ItemData(catalog, shop)), trained[0].item_vectors())
    assert embedder.notes["epochs"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": -1}, r"embedder_args\.layers: -1 is below 0"),
        ({"l2": -1.0}, r"embedder_args\.l2: -1.0 is below 0"),
        ({"batch_pairs": 0}, r"embedder_args\.batch_pairs: 0 is below 1"),
        ({"learning_rate": 0.0}, r"embedder_args\.learning_rate: 0.0 is not above 0"),
    ],
)
def test_impossible_options_are_named(options, message):
    made = resolve(EMBEDDERS, "lightgcn", "embedder")
    with pytest.raises(InputError, match=message):
        made(cli.build_dataclass(options_class(made), options, "embedder_args"))


def test_a_train_split_without_interactions_is_named(shop):
    nothing = dataclasses.replace(shop, train_hi_S=np.zeros_like(shop.train_hi_S))
    with pytest.raises(InputError, match="interactions: train has none; check the split"):
        train_lightgcn(nothing, NUM_ITEMS, SMALL)
