"""Trees in one forward pass against every path as a sequence of its own."""

import numpy as np
import pytest
import torch

from prompts.branches import IGNORE, Branch, BranchBatch
from sid_builder.errors import InputError

PAD = 0


def random_trees(seed: int, vocabulary: int = 500):
    """Trunks of 1 to 12 tokens with up to 5 labelled branches each, and labels for some of the trunks."""
    rng = np.random.default_rng(seed)

    def tokens(size: int) -> list[int]:
        return rng.integers(1, vocabulary, size).tolist()

    trunks, branches, trunk_labels = [], [], []
    for _ in range(6):
        trunk = tokens(rng.integers(1, 13))
        own = []
        for _ in range(rng.integers(0, 6)):
            size = int(rng.integers(1, 5))
            own.append(Branch(int(rng.integers(0, len(trunk))), tokens(size), tokens(size)))
        trunks.append(trunk)
        branches.append(own)
        trunk_labels.append(tokens(len(trunk)) if rng.integers(0, 2) else None)
    return trunks, branches, trunk_labels


@torch.inference_mode()
def label_logprobs(model, ids, positions, mask, labels) -> torch.Tensor:
    logits = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
    logprobs = logits.float().log_softmax(-1)
    return logprobs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]


def separate_logprobs(model, trunk: list[int], branch: Branch | None, labels: list[int]) -> list[float]:
    """Log-probs of labels behind the last `len(labels)` tokens of one path, from a plain causal pass."""
    path = trunk if branch is None else [*trunk[: branch.attach + 1], *branch.token_ids]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([path]), use_cache=False).logits[0].float()
    rows = logits.log_softmax(-1)[-len(labels) :]
    return rows.gather(1, torch.tensor(labels)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("pack", [False, True], ids=["a tree a row", "packed"])
@pytest.mark.parametrize("seed", range(3))
def test_every_path_scores_as_a_sequence_of_its_own(recommender, seed, pack):
    model = recommender.model
    trunks, branches, trunk_labels = random_trees(seed)
    batch = BranchBatch.from_branches(trunks, branches, PAD, trunk_labels, pack=pack)
    found = label_logprobs(
        model,
        batch.input_ids_BQ,
        batch.position_ids_BQ,
        batch.attention_mask(torch.float32),
        batch.shift_labels_BQ,
    )
    found = found[batch.shift_labels_BQ != IGNORE].tolist()
    expected = []
    for trunk, own, labels in zip(trunks, branches, trunk_labels, strict=True):
        expected += separate_logprobs(model, trunk, None, labels) if labels else []
        for branch in own:
            expected += separate_logprobs(model, trunk, branch, branch.labels)
    # Packing moves trees, so compare as sets of numbers there; row by row otherwise.
    if pack:
        found, expected = sorted(found), sorted(expected)
        assert len(batch.input_ids_BQ) < len(trunks)
    assert np.allclose(found, expected, atol=1e-4)


def prefixed_rows(size: int, seed: int = 0):
    """Columns of `from_rows`: random trees behind a common beginning, which carries no label."""
    beginning = list(range(401, 401 + size))
    trunks, branches, trunk_labels = random_trees(seed, vocabulary=400)
    columns: tuple[list, list, list, list] = ([], [], [], [])
    for trunk, own, labels in zip(trunks, branches, trunk_labels, strict=True):
        parts = [(trunk, labels or [IGNORE] * len(trunk)), *((b.token_ids, b.labels) for b in own)]
        row = (
            beginning + [token for tokens, _ in parts for token in tokens],
            [IGNORE] * size + [label for _, own_labels in parts for label in own_labels],
            [branch.attach + size for branch in own],
            [len(branch.token_ids) for branch in own],
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns


@pytest.mark.parametrize("seed", range(3))
def test_what_all_trunks_begin_with_is_laid_once_a_row(recommender, seed):
    """Same log-probs and gradients as a tree a row, with fewer tokens."""
    model, size = recommender.model, 20
    columns = prefixed_rows(size, seed)
    found = {}
    for pack in (False, True):
        batch = BranchBatch.from_rows(*columns, pad_id=PAD, pack=pack)
        labels = batch.shift_labels_BQ
        logits = model(
            input_ids=batch.input_ids_BQ,
            position_ids=batch.position_ids_BQ,
            attention_mask=batch.attention_mask(torch.float32),
            use_cache=False,
        ).logits
        logprobs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        logprobs = logprobs[labels != IGNORE]
        model.zero_grad()
        logprobs.mean().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        found[pack] = (sorted(logprobs.tolist()), gradients, int((~batch.padding_BT).sum()), len(labels))
    model.zero_grad()
    apart, packed = found[False], found[True]
    assert np.allclose(apart[0], packed[0], atol=1e-4)
    for one, other in zip(apart[1], packed[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * max(1.0, float(one.abs().max())))
    assert packed[3] < 6, "several trees lie in a row"
    assert packed[2] == apart[2] - (6 - packed[3]) * size


def test_a_beginning_is_shared_only_where_nothing_hangs_on_it():
    ids, labels, attach, lengths = prefixed_rows(20)

    def tokens(*columns) -> int:
        return int((~BranchBatch.from_rows(*columns, pad_id=PAD, pack=True).padding_BT).sum())

    whole = sum(map(len, ids))
    assert tokens(ids, labels, attach, lengths) < whole
    learnt = [list(row) for row in labels]
    learnt[0][3] = 7
    assert tokens(ids, learnt, attach, lengths) == whole, "fewer than 8 tokens stand before the label"
    with_branch = next(row for row, own in enumerate(attach) if own)
    grown = [list(own) for own in attach]
    grown[with_branch][0] = 5
    assert tokens(ids, labels, grown, lengths) == whole, "a branch grows behind the sixth token"
    assert tokens(*prefixed_rows(7)) == sum(map(len, prefixed_rows(7)[0])), "too short to be worth it"


@pytest.mark.parametrize("pack", [False, True], ids=["a tree a row", "packed"])
@pytest.mark.parametrize("seed", range(3))
def test_a_token_sees_its_path_and_nothing_else(seed, pack):
    """Every token of every tree is a number of its own, so what a row sees can be read off its path."""
    trunks, branches, _ = random_trees(seed)
    fresh = iter(range(1, 10_000))
    trunks = [[next(fresh) for _ in trunk] for trunk in trunks]
    branches = [[Branch(b.attach, [next(fresh) for _ in b.token_ids]) for b in own] for own in branches]
    batch = BranchBatch.from_branches(trunks, branches, PAD, pack=pack)
    expected = {}
    for trunk, own in zip(trunks, branches, strict=True):
        paths = [trunk, *([*trunk[: branch.attach + 1], *branch.token_ids] for branch in own)]
        expected.update({path[end]: set(path[: end + 1]) for path in paths for end in range(len(path))})
    found, width = {}, batch.input_ids_BQ.shape[1]
    for row, ids in enumerate(batch.input_ids_BQ.numpy()):
        for column in range(width):
            seen = np.flatnonzero(batch.visible_BQT[row, column])
            if batch.padding_BT[row, column]:
                assert ids[column] == PAD and seen.tolist() == [column]
                continue
            found[int(ids[column])] = set(ids[seen].tolist())
            assert batch.position_ids_BQ[row, column] == len(seen) - 1
    assert found == expected
    assert (batch.shift_labels_BQ == IGNORE).all()


def test_a_branch_that_copies_its_trunk_token_is_learnt_from_its_first_token(recommender):
    """A copy of token `attach`, attached one earlier, predicts what the token itself does."""
    trunk, sid = [5, 6, 7, 8], [11, 12, 13]
    copied = Branch(attach=2, token_ids=[trunk[3], *sid[:-1]], labels=sid)
    batch = BranchBatch.from_branches([trunk], [[copied]], PAD)
    found = label_logprobs(
        recommender.model,
        batch.input_ids_BQ,
        batch.position_ids_BQ,
        batch.attention_mask(torch.float32),
        batch.shift_labels_BQ,
    )[0, len(trunk) :]
    whole = Branch(attach=3, token_ids=sid)
    assert np.allclose(found, separate_logprobs(recommender.model, trunk, whole, [*sid, 1])[-4:-1], atol=1e-4)


def test_growing_sees_the_prompt_the_ancestors_and_itself():
    """Columns that rows of a second and a third level see, spelled out."""
    start = BranchBatch.from_trunks([[4, 5], [6]], pad_id=PAD)
    assert start.input_ids_BQ.tolist() == [[4, 5], [PAD, 6]]
    assert start.position_ids_BQ.tolist() == [[0, 1], [0, 0]]
    assert start.padding_BT.tolist() == [[False, False], [True, False]]
    second = start.last_rows().grow(torch.tensor([[0, 0], [0, 0]]), torch.tensor([[7, 8], [9, 10]]))
    third = second.grow(torch.tensor([[1, 1], [0, 1]]), torch.tensor([[11, 12], [13, 14]]))
    seen = [[set(np.flatnonzero(row).tolist()) for row in rows] for rows in third.visible_BQT.numpy()]
    assert seen == [[{0, 1, 3, 4}, {0, 1, 3, 5}], [{1, 2, 4}, {1, 3, 5}]]
    assert third.position_ids_BQ.tolist() == [[3, 3], [2, 2]]
    assert third.visible_BQT.shape == (2, 2, 6)
    assert third.padding_BT.tolist() == [[False] * 6, [True, *[False] * 5]]


def test_masks_are_additive_and_no_row_is_empty():
    """A row that sees nothing would be NaN under softmax; rows of padding see themselves."""
    batch = BranchBatch.from_branches([[4, 5, 6], [7]], [[], [Branch(0, [8])]], pad_id=PAD)
    mask = batch.attention_mask(torch.bfloat16)
    assert mask.dtype == torch.bfloat16 and mask.shape == (2, 1, 3, 3)
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.bfloat16).min}
    assert batch.visible_BQT.any(dim=2).all()
    assert batch.padding_BT.tolist() == [[False] * 3, [False, False, True]]
    assert batch.visible_BQT[1, 2].tolist() == [False, False, True]
    moved = batch.to("cpu")
    assert torch.equal(moved.shift_labels_BQ, batch.shift_labels_BQ)


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_empty_prompts_are_refused(prompts):
    with pytest.raises(InputError, match="empty prompt"):
        BranchBatch.from_trunks(prompts, pad_id=PAD)
