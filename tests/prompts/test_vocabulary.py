"""Where SID tokens lie in a tokenizer, and what happens when it disagrees with its index."""

import numpy as np
import pytest

from prompts.vocabulary import SidVocabulary
from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from tests.builders import make_index, make_tokenizer


def test_tables_encode_and_decode(small_index):
    tokenizer = make_tokenizer(small_index)
    vocabulary = SidVocabulary.of(tokenizer, small_index.semantic_ids)
    for item in (0, 17, 299):
        ids = vocabulary.encode(small_index.semantic_ids.codes_NL[item])
        assert tokenizer.encode(small_index.semantic_ids.spell(item), add_special_tokens=False) == ids
        assert vocabulary.decode(ids) == tuple(small_index.semantic_ids.codes_NL[item].tolist())
        assert vocabulary.decode(ids[:2]) == vocabulary.decode(ids)[:2]
    assert vocabulary.decode([ids[1], ids[0]]) is None
    assert vocabulary.decode([0]) is None
    assert vocabulary.decode([*ids, ids[0]]) is None
    assert (np.diff(vocabulary.all_ids) > 0).all() and len(vocabulary.all_ids) == 48


def test_a_tokenizer_that_lacks_used_tokens_is_refused(small_index):
    larger = make_index(np.array([[0, 0, 20], [1, 2, 3]]), (16, 16, 32))
    with pytest.raises(InputError, match=r"tokenizer: '<c_20>'.*1 of the 6 tokens that items use"):
        SidVocabulary.of(make_tokenizer(small_index), larger.semantic_ids)


def test_codes_that_no_item_uses_may_be_missing(small_index):
    wider = SemanticIds(small_index.semantic_ids.codes_NL, (20, 16, 16))
    vocabulary = SidVocabulary.of(make_tokenizer(small_index), wider)
    assert (vocabulary.token_ids[0][16:] == -1).all()
    assert -1 not in vocabulary.all_ids and -1 not in vocabulary.code_of


def test_a_tokenizer_that_splits_sids_is_refused(small_index):
    class Splitting:
        def __init__(self, tokenizer):
            self.get_vocab = tokenizer.get_vocab
            self.encode = lambda text, add_special_tokens: [ord(letter) for letter in text]

    with pytest.raises(InputError, match="add SID tokens as whole tokens"):
        SidVocabulary.of(Splitting(make_tokenizer(small_index)), small_index.semantic_ids)
