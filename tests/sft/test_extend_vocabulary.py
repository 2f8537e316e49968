"""Checkpoints that carry SID tokens already: their rows are kept, whatever order the tokens are in, all the
way from training to decoding; those of another index are refused.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompts.vocabulary import SidVocabulary, used_tokens
from serve.decoding import tree_beam
from serve.decoding.recommender import Recommender
from sft import merge
from sft.vocabulary import check_same_sids, extend_tokenizer
from sid_builder.errors import InputError
from tests.builders import make_index
from tests.sft.builders import make_interactions, write_checkpoint, write_sids
from tests.sft.command_line import run_sft

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def index():
    """40 items under 16 x 16 x 16 codes, some of which no item uses."""
    rng = np.random.default_rng(5)
    codes = rng.permutation(np.unique(rng.integers(0, 16, (60, 3)), axis=0))[:NUM_ITEMS]
    return make_index(codes, (16, 16, 16))


@pytest.fixture(scope="module")
def sids(index, tmp_path_factory):
    return write_sids(tmp_path_factory.mktemp("sids") / "sids", index, make_interactions(NUM_ITEMS))


@pytest.fixture(scope="module")
def peer(index, tmp_path_factory):
    """A checkpoint as MiniOneRec leaves it: the tokens that items use, added in the order of their text."""
    path = write_checkpoint(tmp_path_factory.mktemp("peer") / "model", index, "qwen2", tied=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(sorted(used_tokens(index.semantic_ids)))
    model = AutoModelForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(len(tokenizer))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # learnt rows: far from each other, so that rankings are no near-ties
        weight = model.get_input_embeddings().weight
        weight[-len(used_tokens(index.semantic_ids)) :] = torch.randn(
            len(used_tokens(index.semantic_ids)), weight.shape[1], generator=generator
        )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_tokens_are_out_of_code_order_and_incomplete(index, peer):
    tokenizer = AutoTokenizer.from_pretrained(peer)
    before = len(tokenizer)
    assert extend_tokenizer(tokenizer, index.semantic_ids) == [] and len(tokenizer) == before
    first = SidVocabulary.of(tokenizer, index.semantic_ids).token_ids[0]
    assert (first == -1).any() and (np.diff(first[first >= 0]) < 0).any()


def scores_by_teacher_forcing(recommender, prompt):
    """Log-prob of every item's SID behind a prompt, one plain forward pass for each."""
    scores = []
    for item in range(NUM_ITEMS):
        sid = recommender.template.sid_ids[item]
        with torch.inference_mode():
            logits = recommender.model(input_ids=torch.tensor([prompt + sid[:-1]])).logits[0]
        logprobs = logits.log_softmax(dim=-1)[len(prompt) - 1 :]
        scores.append(float(logprobs.gather(1, torch.tensor(sid)[:, None]).sum()))
    return np.array(scores)


def check_decoding(recommender):
    """Items by beam are items by teacher forcing, with each way to score."""
    prompt = recommender.template.seqrec_prompt([3, 5, 1])
    wanted = scores_by_teacher_forcing(recommender, prompt)
    (ranking,) = tree_beam.decode(recommender.model, [prompt], recommender.trie, NUM_ITEMS)
    assert sorted(ranking.items_K) == list(range(NUM_ITEMS))
    np.testing.assert_allclose(ranking.scores_K, wanted[ranking.items_K], atol=1e-4)
    for score in ("trie", "sid"):
        (other,) = tree_beam.decode(recommender.model, [prompt], recommender.trie, NUM_ITEMS, None, score)
        assert sorted(other.items_K) == list(range(NUM_ITEMS))


def test_a_finished_checkpoint_becomes_a_model_directory(index, sids, peer, tmp_path):
    given = ["--base_model", str(peer), "--sid_dir", str(sids), "--prompt_pack", "chat"]
    merge.main([*given, "--output_dir", str(tmp_path / "model")])
    recommender = Recommender.load(tmp_path / "model")
    assert torch.equal(
        recommender.model.get_input_embeddings().weight,
        AutoModelForCausalLM.from_pretrained(peer).get_input_embeddings().weight,
    )
    assert recommender.interactions.num_sequences == 30
    check_decoding(recommender)


def test_training_goes_on_from_its_rows(index, sids, peer, tmp_path, capsys):
    flags = [
        "--max_steps",
        2,
        "--save_strategy",
        "no",
        "--learning_rate",
        0.01,
        "--new_tokens",
        '{"init": "text"}',
    ]
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", peer, *flags)
    assert "new_tokens.init 'text' has no effect" in capsys.readouterr().out
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    recommender = Recommender.load(tmp_path / "model")
    before, base, after = (
        AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight
        for path in (peer, tmp_path / "sft" / "base", tmp_path / "model")
    )
    assert torch.equal(before, base), "nothing is added, and no row begins anew"
    ids = recommender.template.vocabulary.all_ids
    assert len(ids) == len(used_tokens(index.semantic_ids)) < 48
    assert np.flatnonzero((before != after).any(dim=1).numpy()).tolist() == ids.tolist()
    check_decoding(recommender)


def test_a_checkpoint_from_another_index_is_refused(peer, tmp_path):
    rng = np.random.default_rng(6)
    other = make_index(
        rng.permutation(np.unique(rng.integers(0, 16, (60, 3)), axis=0))[:NUM_ITEMS], (16, 16, 16)
    )
    used = used_tokens(other.semantic_ids)
    known = AutoTokenizer.from_pretrained(peer).get_vocab()
    missing = [token for token in used if token not in known]
    message = (
        f"from another index: .*'{missing[0]}' is not .*{len(missing)} of the {len(used)} tokens that items"
    )
    with pytest.raises(InputError, match=message) as caught:
        run_sft(
            write_sids(tmp_path / "sids", other, make_interactions(NUM_ITEMS)),
            tmp_path / "sft",
            "--model_name_or_path",
            peer,
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "sft").exists()


def test_a_model_directory_of_another_index_is_refused(index, sids, peer, tmp_path):
    """Both indices have the same tokens: only the items' own SIDs tell them apart."""
    given = ["--base_model", str(peer), "--sid_dir", str(sids), "--prompt_pack", "chat"]
    merge.main([*given, "--output_dir", str(tmp_path / "model")])
    check_same_sids(tmp_path / "model", index)
    check_same_sids("some/hub-name", index)
    codes = index.semantic_ids.codes_NL.copy()
    codes[[4, 9]] = codes[[9, 4]]
    swapped = make_index(codes, (16, 16, 16))
    with pytest.raises(InputError, match=r"another index: item 'item-4' is <a_.*2 of 40 shared items differ"):
        run_sft(
            write_sids(tmp_path / "swapped", swapped, make_interactions(NUM_ITEMS)),
            tmp_path / "sft",
            "--model_name_or_path",
            tmp_path / "model",
        )


def test_tokens_without_rows_are_refused(index, sids, peer, tmp_path):
    """A tokenizer with SID tokens beside a model that was never extended."""
    path = write_checkpoint(tmp_path / "short", index, "qwen2", tied=True)
    AutoTokenizer.from_pretrained(peer).save_pretrained(path)
    with pytest.raises(
        InputError, match=r"short: has \d+ embedding rows, and its SID tokens go up to \d+; .*sft.merge"
    ):
        run_sft(sids, tmp_path / "sft", "--model_name_or_path", path)
    given = ["--base_model", str(path), "--sid_dir", str(sids), "--prompt_pack", "chat"]
    with pytest.raises(InputError, match=r"base_model: .*short: has \d+ embedding rows"):
        merge.main([*given, "--output_dir", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()
