"""The tree beam against teacher forcing of every path and transformers' constrained `generate`, in fp32.

Legend: M leaves, L levels, P prompt tokens, V vocabulary.
"""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from prompts.template import PromptTemplate
from serve.decoding import generate, tree_beam, tree_model
from serve.decoding.ranking import ItemFilter, Ranking
from sid_builder.errors import InputError
from sid_builder.semantic_ids import SemanticIds
from sid_builder.sid_index import SidIndex
from tests.builders import make_index, make_recommender

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def wide_index() -> SidIndex:
    """400 items under 64 x 8 x 8 codes: more first codes than beams, which transformers needs."""
    rng = np.random.default_rng(3)
    codes = np.stack([np.arange(400) % 64, rng.integers(0, 8, 400), rng.integers(0, 8, 400)], axis=1)
    return make_index(codes, (64, 8, 8))


@pytest.fixture(scope="module")
def short_index() -> SidIndex:
    """SIDs of one, two and three levels, prefix-free."""
    rng = np.random.default_rng(4)
    codes = np.stack([rng.integers(0, 8, 120) for _ in range(3)], axis=1)
    codes[codes[:, 0] == 1, 1:] = -1
    codes[(codes[:, 0] == 2) & (codes[:, 1] % 2 == 0), 2:] = -1
    return make_index(codes, (8, 8, 8))


@pytest.fixture(scope="module")
def wide(wide_index):
    return make_recommender(wide_index)


@pytest.fixture(scope="module")
def short(short_index):
    return make_recommender(short_index, architecture="llama")


def ragged_prompts(recommender, count: int = 3, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    num_items = recommender.index.catalog.num_items
    return [recommender.template.seqrec_prompt(rng.integers(0, num_items, 1 + 3 * i)) for i in range(count)]


@torch.inference_mode()
def forced_logits(model, prompt: list[int], paths: list[list[int]]) -> dict[tuple[int, ...], torch.Tensor]:
    """Next-token logits [V] behind every prefix of every path, from sequences without our mask or cache."""
    prefixes = sorted({tuple(path[:length]) for path in paths for length in range(len(path))})
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for prefix in prefixes:
        by_length.setdefault(len(prefix), []).append(prefix)
    logits = {}
    for same_length in by_length.values():
        ids = torch.tensor([[*prompt, *prefix] for prefix in same_length])
        last = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        logits.update(zip(same_length, last, strict=True))
    return logits


def reference(
    recommender, prompt, k, item_filter=None, score="full"
) -> tuple[list[tuple[int, ...]], list[float]]:
    """Beam search written down plainly: over tuples of codes, scores from `forced_logits`."""
    vocabulary, codes_NL = recommender.template.vocabulary, recommender.index.semantic_ids.codes_NL
    kept = np.arange(len(codes_NL))
    if item_filter is not None:
        kept = kept[item_filter.keeps(kept)]
    sids = {tuple(code for code in row if code >= 0) for row in codes_NL[kept].tolist()}
    token = {sid: [int(vocabulary.token_ids[level][code]) for level, code in enumerate(sid)] for sid in sids}
    logits = forced_logits(recommender.model, prompt, list(token.values()))
    beams = [((), 0.0)]
    for level in range(codes_NL.shape[1]):
        grown = []
        for prefix, total in beams:
            if prefix in sids:
                grown.append((prefix, total))
                continue
            children = sorted({sid[level] for sid in sids if sid[:level] == prefix})
            ids = [int(vocabulary.token_ids[level][code]) for code in children]
            row = logits[tuple(vocabulary.encode(np.array(prefix)))]
            among = {"full": row, "trie": row[ids], "sid": row[torch.from_numpy(vocabulary.all_ids)]}[score]
            values = (row[ids] - among.logsumexp(0)).tolist()
            grown += [((*prefix, code), total + value) for code, value in zip(children, values, strict=True)]
        beams = sorted(grown, key=lambda beam: (-beam[1], beam[0]))[:k]
    return [sid for sid, _ in beams], [total for _, total in beams]


def codes_of(ranking: Ranking) -> list[tuple[int, ...]]:
    return [tuple(code for code in row if code >= 0) for row in ranking.codes_BL.tolist()]


def assert_same(ranking: Ranking, sids, scores) -> None:
    assert codes_of(ranking) == sids
    assert np.abs(ranking.beam_scores_B - np.array(scores)).max(initial=0.0) < TOLERANCE


@pytest.mark.parametrize("score", ["full", "trie", "sid"])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_brute_force_beam(recommender, k, score):
    prompts = ragged_prompts(recommender)
    rankings = tree_beam.decode(recommender.model, prompts, recommender.trie, k, score=score)
    for prompt, ranking in zip(prompts, rankings, strict=True):
        assert_same(ranking, *reference(recommender, prompt, k, score=score))
        assert ranking.legal_B.all()


def test_a_wide_beam_is_the_exact_ranking_of_the_catalogue(recommender):
    """More beams than SIDs: every SID, each once, best first, and every item once."""
    prompts = ragged_prompts(recommender, 2)
    rankings = tree_beam.decode(recommender.model, prompts, recommender.trie, 1000)
    for prompt, ranking in zip(prompts, rankings, strict=True):
        sids, scores = reference(recommender, prompt, 1000)
        assert_same(ranking, sids, scores)
        assert len(sids) == recommender.index.trie.num_leaves
        assert sorted(ranking.items_K.tolist()) == list(range(recommender.index.catalog.num_items))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_transformers_constrained_generate(wide_index, architecture, tied):
    made = make_recommender(wide_index, architecture=architecture, tied=tied)
    prompts = ragged_prompts(made)
    for k in (1, 10, 50):
        ours = tree_beam.decode(made.model, prompts, made.trie, k)
        theirs = generate.decode(made.model, prompts, made.trie, k)
        for mine, peer in zip(ours, theirs, strict=True):
            assert_same(mine, codes_of(peer), peer.beam_scores_B)
            assert mine.items_K.tolist() == peer.items_K.tolist()


@pytest.mark.parametrize("decoder", [tree_beam, generate])
def test_the_checkpoints_own_generation_config_changes_nothing(wide, decoder):
    prompts = ragged_prompts(wide)
    before = decoder.decode(wide.model, prompts, wide.trie, 10)
    adversarial = GenerationConfig(
        do_sample=True, temperature=0.2, top_k=2, top_p=0.3, repetition_penalty=7.0, no_repeat_ngram_size=1,
        num_beams=3, length_penalty=5.0, max_new_tokens=1,
        eos_token_id=int(wide.template.vocabulary.all_ids[3]),
        suppress_tokens=wide.template.vocabulary.all_ids[:40].tolist(),
    )  # fmt: skip
    own, wide.model.generation_config = wide.model.generation_config, adversarial
    try:
        after = decoder.decode(wide.model, prompts, wide.trie, 10)
        assert wide.model.generation_config is adversarial
    finally:
        wide.model.generation_config = own
    for mine, peer in zip(before, after, strict=True):
        assert_same(mine, codes_of(peer), peer.beam_scores_B)


def test_eager_attention(recommender):
    prompts = ragged_prompts(recommender)
    expected = tree_beam.decode(recommender.model, prompts, recommender.trie, 20)
    recommender.model.set_attn_implementation("eager")
    try:
        rankings = tree_beam.decode(recommender.model, prompts, recommender.trie, 20)
    finally:
        recommender.model.set_attn_implementation("sdpa")
    for mine, peer in zip(rankings, expected, strict=True):
        assert_same(mine, codes_of(peer), peer.beam_scores_B)


def filters_for(index: SidIndex, seed: int) -> list[ItemFilter | None]:
    rng = np.random.default_rng(seed)
    num_items = index.catalog.num_items
    draw = lambda size: rng.choice(num_items, size, replace=False)  # noqa: E731
    allow = draw(30)
    return [
        None,
        ItemFilter(exclude=draw(num_items - 12)),
        ItemFilter(allow=allow),
        ItemFilter(exclude=np.concatenate([allow[:15], draw(50)]), allow=allow),
        ItemFilter(exclude=allow, allow=allow),
    ]


@pytest.mark.parametrize("k", [5, 1000])
@pytest.mark.parametrize("kind", ["recommender", "short"])
def test_filters_give_the_filtered_brute_force_list(kind, k, request):
    made = request.getfixturevalue(kind)
    filters = filters_for(made.index, seed=k)
    prompts = ragged_prompts(made, len(filters))
    rankings = tree_beam.decode(made.model, prompts, made.trie, k, filters)
    for prompt, item_filter, ranking in zip(prompts, filters, rankings, strict=True):
        if item_filter is not None:
            assert item_filter.keeps(ranking.items_K).all()
        if item_filter is filters[-1]:  # nothing is allowed
            assert len(ranking.items_K) == len(ranking.codes_BL) == 0
            continue
        assert_same(ranking, *reference(made, prompt, k, item_filter))
    for score in ("trie", "sid"):
        (ranking,) = tree_beam.decode(made.model, prompts[3:4], made.trie, k, filters[3:4], score=score)
        assert_same(ranking, *reference(made, prompts[3], k, filters[3], score))


@pytest.mark.parametrize("k", [1, 6, 500])
def test_variable_length_sids(short, k):
    prompts = ragged_prompts(short)
    for score in ("full", "trie", "sid"):
        rankings = tree_beam.decode(short.model, prompts, short.trie, k, score=score)
        for prompt, ranking in zip(prompts, rankings, strict=True):
            assert_same(ranking, *reference(short, prompt, k, score=score))
    with pytest.raises(InputError, match="short SIDs"):
        generate.decode(short.model, prompts, short.trie, k)


def test_ties_are_ordered_by_codes(wide_index):
    made = make_recommender(wide_index, tied=False)
    made.model.lm_head.weight.data.zero_()
    (ranking,) = tree_beam.decode(made.model, ragged_prompts(made, 1), made.trie, 20)
    assert codes_of(ranking) == sorted(codes_of(ranking))
    (every,) = tree_beam.decode(made.model, ragged_prompts(made, 1), made.trie, 10_000)
    assert np.array_equal(every.codes_BL, made.index.trie.codes_ML)


@pytest.mark.parametrize("score", ["full", "trie", "sid"])
@pytest.mark.parametrize("trained", ["rows of a tied head", "rows of both", "lora on the head"])
def test_a_model_wrapped_by_peft(wide_index, trained, score):
    """LoRA weights and trained token rows take part, in the input and in the head."""
    from peft import LoraConfig, get_peft_model

    made = make_recommender(wide_index, tied=trained == "rows of a tied head")
    ids = made.template.vocabulary.all_ids.tolist()
    tokens = {"embed_tokens": ids, "lm_head": ids} if trained == "rows of both" else {"embed_tokens": ids}
    modules = ["q_proj", "v_proj", "down_proj"] + (["lm_head"] if trained == "lora on the head" else [])
    config = LoraConfig(r=4, target_modules=modules, trainable_token_indices=tokens)
    prompts = ragged_prompts(made)
    before = tree_beam.decode(made.model, prompts, made.trie, 20, score=score)
    made.model = get_peft_model(made.model, config).eval()
    torch.manual_seed(0)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    after = tree_beam.decode(made.model, prompts, made.trie, 20, score=score)
    for prompt, ranking, plain in zip(prompts, after, before, strict=True):
        assert_same(ranking, *reference(made, prompt, 20, score=score))
        assert codes_of(ranking) != codes_of(plain)


def test_the_free_beam_is_transformers_unconstrained_one(wide):
    prompts = ragged_prompts(wide)
    rankings = tree_beam.decode(wide.model, prompts, wide.trie, 10, constraint="none")
    for prompt, ranking in zip(prompts, rankings, strict=True):
        output = wide.model.generate(
            torch.tensor([prompt]),
            generation_config=GenerationConfig(
                num_beams=10, num_return_sequences=10, do_sample=False, length_penalty=0.0, max_new_tokens=3,
                min_new_tokens=3, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
                output_scores=True,
            ),
        )  # fmt: skip
        assert np.abs(ranking.beam_scores_B - output.sequences_scores.numpy()).max() < TOLERANCE
        decoded = [
            wide.template.vocabulary.decode(path) for path in output.sequences[:, len(prompt) :].tolist()
        ]
        legal = [codes is not None and wide.index.trie.node_of(codes) is not None for codes in decoded]
        assert ranking.legal_B.tolist() == legal
        assert not ranking.legal_B.all()


def test_a_free_beam_that_spells_only_sids_is_the_constrained_one():
    """SIDs of one level, and a head whose bias pushes every other token away."""
    index = make_index(np.concatenate([np.arange(64), [3, 3, 9]])[:, None], (64,))
    made = make_recommender(index, tied=False)
    bias = torch.full((made.model.lm_head.out_features,), -1e4)
    bias[torch.from_numpy(made.template.vocabulary.all_ids)] = 0.0
    made.model.lm_head.bias = torch.nn.Parameter(bias)
    prompts = ragged_prompts(made)
    free = tree_beam.decode(made.model, prompts, made.trie, 20, constraint="none")
    bound = tree_beam.decode(made.model, prompts, made.trie, 20)
    for mine, peer in zip(free, bound, strict=True):
        assert mine.legal_B.all()
        assert_same(mine, codes_of(peer), peer.beam_scores_B)
        assert mine.items_K.tolist() == peer.items_K.tolist()


def test_batches_change_nothing(wide):
    prompts = ragged_prompts(wide, 6)
    together = tree_beam.decode(wide.model, prompts, wide.trie, 20)
    for prompt, ranking in zip(prompts, together, strict=True):
        (alone,) = tree_beam.decode(wide.model, [prompt], wide.trie, 20)
        assert_same(alone, codes_of(ranking), ranking.beam_scores_B)


def test_blocks_of_the_head_change_nothing(wide, monkeypatch):
    prompts = ragged_prompts(wide, 4)
    whole = tree_beam.decode(wide.model, prompts, wide.trie, 20)
    monkeypatch.setattr(tree_model, "_MAX_LOGITS", 7 * 700)
    for mine, peer in zip(tree_beam.decode(wide.model, prompts, wide.trie, 20), whole, strict=True):
        assert_same(mine, codes_of(peer), peer.beam_scores_B)


def test_refusals(wide):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with pytest.raises(InputError, match="num_beams: 0"):
        tree_beam.decode(wide.model, [[1]], wide.trie, 0)
    with pytest.raises(InputError, match="empty prompt"):
        tree_beam.decode(wide.model, [[1], []], wide.trie, 5)
    with pytest.raises(InputError, match="item filters"):
        tree_beam.decode(wide.model, [[1]], wide.trie, 5, [ItemFilter()], constraint="none")
    assert tree_beam.decode(wide.model, [], wide.trie, 5) == []
    config = Qwen2Config(
        vocab_size=900, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="sliding_attention"):
        tree_beam.decode(Qwen2ForCausalLM(config), [[1]], wide.trie, 5)
    flash = Qwen2Config(vocab_size=900, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    flash._attn_implementation = "flash_attention_2"
    from prompts.branches import check_attention

    with pytest.raises(InputError, match="flash_attention_2"):
        check_attention(flash)


def test_a_tokenizer_without_unused_codes_still_decodes(wide_index):
    """Codes that no item uses may be missing from the vocabulary; their entries are -1 and never touched."""
    ids = SemanticIds(wide_index.semantic_ids.codes_NL, (70, 9, 9))
    index = SidIndex(wide_index.catalog, ids, wide_index.train_counts_N)
    made = make_recommender(wide_index)
    template = PromptTemplate(made.template.pack, made.tokenizer, index)
    assert (template.vocabulary.token_ids[0][64:] == -1).all()
    made.index, made.template = index, template
    prompts = ragged_prompts(made)
    for prompt, ranking in zip(prompts, tree_beam.decode(made.model, prompts, made.trie, 20), strict=True):
        assert_same(ranking, *reference(made, prompt, 20))
