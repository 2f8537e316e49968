"""What every registered decoder must do, whatever it is built on."""

import numpy as np
import pytest

from serve import DECODERS
from sid_builder.errors import InputError
from sid_builder.registry import resolve
from tests.builders import make_index, make_recommender


@pytest.fixture(scope="module")
def few():
    """Five items under four SIDs."""
    codes = np.array([[0, 0], [0, 1], [2, 1], [3, 0], [3, 0]])
    return make_recommender(make_index(codes, (4, 2)))


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize(
    "kind, k", [("recommender", 3), ("recommender", 40), ("few", 1), ("few", 3), ("few", 30)]
)
def test_conformance(name, kind, k, request):
    """Legal and distinct SIDs, best first, k of them or all there are, and the items behind them."""
    made = request.getfixturevalue(kind)
    decode = resolve(DECODERS, name, "decoder")
    prompts = [made.template.seqrec_prompt(history) for history in ([1], [2, 3, 4, 0], [4])]
    rankings = decode(made.model, prompts, made.trie, k)
    assert len(rankings) == len(prompts)
    trie = made.index.trie
    for ranking in rankings:
        leaves = [trie.node_of([code for code in row if code >= 0]) for row in ranking.codes_BL.tolist()]
        assert len(leaves) == min(k, trie.num_leaves) == len(set(leaves))
        assert ranking.legal_B.all() and None not in leaves
        assert (np.diff(ranking.beam_scores_B) <= 0).all() and (ranking.beam_scores_B <= 1e-5).all()
        assert ranking.items_K.tolist() == [int(i) for leaf in leaves for i in trie.items_of_leaf(leaf)]
        assert len(ranking.scores_K) == len(ranking.items_K)


def test_unknown_decoders_are_named():
    with pytest.raises(
        InputError, match=r"decoder: 'bream' is not known; use one of \['generate', 'tree_beam'\]"
    ):
        resolve(DECODERS, "bream", "decoder")
