"""A real vLLM server, asked by a real OpenAI client: legality, exact scores, words of training, errors."""

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serve.chat import main as chat
from serve.chat import request_messages
from serve.decoding.tree_beam import decode
from sid_builder.errors import InputError

pytestmark = pytest.mark.vllm


def ask(endpoint, text="Thing number 4", mode=None, **options):
    extra = {"vllm_xargs": {"sid_mode": mode}} if mode else {}
    messages = [{"role": "user", "content": text}]
    return endpoint.client.chat.completions.create(
        model="sidereal", messages=messages, extra_body=extra, **options
    )


def items_in(endpoint, text):
    """Item indices of an answer that is one SID and nothing else."""
    ids = endpoint.recommender.index.semantic_ids
    codes = ids.parse(text)
    assert codes is not None, text
    return ids.items_of(codes)


def test_natural_language_request_gets_a_legal_item(endpoint):
    answer = ask(endpoint, "something like the red trail shoes, but waterproof")
    assert items_in(endpoint, answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 4  # three levels and the end of the turn, without max_tokens


def test_sampled_and_greedy_requests_never_leave_the_catalogue(endpoint):
    def one(number):
        temperature = [0.0, 1.0, 1.5, 2.0][number % 4]
        options = {"top_p": 0.9} if number % 8 == 5 else {}
        stream = ask(endpoint, f"Thing number {number}", temperature=temperature, seed=number, **options)
        return stream.choices[0].message.content

    answers = [one(number) for number in range(12)]
    with ThreadPoolExecutor(8) as pool:
        answers += pool.map(one, range(12, 62))
    answers += [choice.message.content for choice in ask(endpoint, temperature=2.0, n=16, seed=1).choices]
    assert all(items_in(endpoint, text) for text in answers)
    assert len(set(answers)) > 30


def whole_sids(endpoint, text):
    """SIDs in a text, each of which must be an item's."""
    matches = list(re.finditer(r"<([a-c])_(\d+)>", text))
    assert len(matches) % 3 == 0, text
    spelled = [text[matches[first].start() : matches[first + 2].end()] for first in range(0, len(matches), 3)]
    assert all(items_in(endpoint, sid) for sid in spelled), text
    return spelled


def test_inline_text_holds_whole_items_only(endpoint):
    def one(seed):
        bias = {str(int(one)): 5 for one in endpoint.recommender.template.vocabulary.token_ids[0]}
        answer = ask(
            endpoint, mode="inline", temperature=1.0, seed=seed, max_tokens=20 + seed, logit_bias=bias
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(one, range(16)))
    assert len([sid for text in texts for sid in whole_sids(endpoint, text)]) > 10


def test_preemption_changes_nothing(endpoint):
    """The fixture's server has room for a few of these requests; seeded ones must not end the engine."""
    recommender = endpoint.recommender
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 300, 20) for _ in range(48)]
    messages = [request_messages(recommender.template, None, history) for history in histories]
    prompts = [recommender.template.seqrec_prompt(history) for history in histories]
    assert min(map(len, prompts)) > 64
    before = preemptions(endpoint)

    def one(number):
        inline = number % 2 == 1
        options = {"extra_body": {"vllm_xargs": {"sid_mode": "inline"}, "ignore_eos": True}} if inline else {}
        return endpoint.client.chat.completions.create(
            model="sidereal",
            messages=messages[number],
            temperature=1.0 if inline else 0.0,
            seed=number,
            max_tokens=150 if inline else None,
            logprobs=True,
            **options,
        ).choices[0]

    with ThreadPoolExecutor(24) as pool:
        choices = list(pool.map(one, range(48)))
    assert preemptions(endpoint) > before
    rankings = decode(recommender.model, prompts, recommender.trie, 1)
    for choice, ranking in list(zip(choices, rankings, strict=True))[::2]:
        assert recommender.index.semantic_ids.parse(choice.message.content) == tuple(ranking.codes_BL[0])
        score = sum(token.logprob for token in choice.logprobs.content[:3])
        assert score == pytest.approx(float(ranking.beam_scores_B[0]), abs=1e-3)
    sids = [sid for choice in choices[1::2] for sid in whole_sids(endpoint, choice.message.content)]
    assert len(sids) > 20


def preemptions(endpoint):
    with urllib.request.urlopen(endpoint.server.root_url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_preemptions_total"))


def test_off_is_the_plain_model(endpoint):
    texts = [ask(endpoint, mode="off", temperature=1.0, seed=seed, max_tokens=12) for seed in range(6)]
    spelled = [endpoint.recommender.index.semantic_ids.parse(one.choices[0].message.content) for one in texts]
    assert spelled.count(None) > 0  # random weights say anything
    logprobs = ask(endpoint, mode="off", temperature=0, max_tokens=1, logprobs=True, top_logprobs=20)
    top = logprobs.choices[0].logprobs.content[0].top_logprobs
    assert all(entry.logprob < 0 for entry in top)  # log-probs, not logits, in this mode as well


def tokenize(endpoint, messages):
    body = json.dumps({"model": "sidereal", "messages": messages}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(endpoint.server.root_url + "/tokenize", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["tokens"]


def test_endpoint_reads_the_token_ids_of_training(endpoint):
    template = endpoint.recommender.template
    for text in ("a red thing", "Thing number 7, but <b_3> cheaper\n", "é ü 漢字"):
        assert tokenize(endpoint, request_messages(template, text, [])) == template.prompt(
            "query2sid", query=text
        )
    for history in ([3], list(range(12)), list(range(100))):
        ids = tokenize(endpoint, request_messages(template, None, history))
        assert ids == template.prompt("seqrec", history) == template.seqrec_prompt(history)
    messages = [{"role": "user", "content": "any words"}]
    assert tokenize(endpoint, messages) == template.encode_prompt("any words")


def test_bad_requests_are_refused_with_the_field_and_the_fix(endpoint):
    import openai

    bad = [
        ({"extra_body": {"vllm_xargs": {"sid_mode": "beams"}}}, "sid_mode: 'beams' is not one of"),
        ({"max_tokens": 2}, "max_tokens: 2 cannot hold an item; give at least 3"),
        ({"presence_penalty": 1.0}, "presence_penalty: 1.0 does not go with sid_mode 'items'"),
        ({"extra_body": {"vllm_xargs": {"sid": [2, 10**9]}}}, "sid: "),
    ]
    for options, words in bad:
        with pytest.raises(openai.BadRequestError, match=re.escape(words)):
            endpoint.client.chat.completions.create(
                model="sidereal", messages=[{"role": "user", "content": "x"}], **options
            )
    assert items_in(endpoint, ask(endpoint).choices[0].message.content)  # the engine is still there


def test_greedy_answers_and_scores_are_those_of_the_tree_beam(endpoint):
    recommender = endpoint.recommender
    texts = [f"Thing number {number}" for number in range(20)]
    prompts = [recommender.template.encode_prompt(text) for text in texts]
    rankings = decode(recommender.model, prompts, recommender.trie, 1)
    for text, ranking in zip(texts, rankings, strict=True):
        choice = ask(endpoint, text, temperature=0, logprobs=True).choices[0]
        assert recommender.index.semantic_ids.parse(choice.message.content) == tuple(ranking.codes_BL[0])
        score = sum(token.logprob for token in choice.logprobs.content[:3])
        assert score == pytest.approx(float(ranking.beam_scores_B[0]), abs=1e-3)


def run_chat(endpoint, capsys, *argv):
    chat(["--model", str(endpoint.model_dir), "--base_url", endpoint.server.base_url, *argv])
    return capsys.readouterr().out.splitlines()


def test_chat_prints_titles_ids_and_scores(endpoint, capsys):
    lines = run_chat(endpoint, capsys, "something like thing number 9", "--n", "4", "--temperature", "2")
    assert lines[0].split() == ["rank", "title", "item_id", "score"]
    catalog = endpoint.recommender.index.catalog
    scores = []
    for rank, line in enumerate(lines[1:5], start=1):
        number, title, item_id, score = re.split(r" {2,}", line.strip())
        assert int(number) == rank and catalog.titles[catalog.item_index(item_id)] == title
        scores.append(float(score))
    assert scores == sorted(scores, reverse=True)
    # Scores are comparable whatever the temperature: those of the tree beam for the same item.
    recommender = endpoint.recommender
    prompt = recommender.template.prompt("query2sid", query="something like thing number 9")
    ranking = decode(recommender.model, [prompt], recommender.trie, 300)[0]
    score_of = dict(zip(ranking.items_K.tolist(), ranking.scores_K.tolist(), strict=True))
    for line in lines[1:5]:
        _, _, item_id, score = re.split(r" {2,}", line.strip())
        assert float(score) == pytest.approx(score_of[catalog.item_index(item_id)], abs=2e-3)


def test_chat_by_history(endpoint, capsys):
    lines = run_chat(endpoint, capsys, "--n", "1", "--history", "item-3", "item-8")
    recommender = endpoint.recommender
    ranking = decode(recommender.model, [recommender.template.prompt("seqrec", [3, 8])], recommender.trie, 1)[
        0
    ]
    assert f"item-{ranking.items_K[0]}" in lines[1].split()


def test_chat_by_history_and_request(endpoint, capsys):
    lines = run_chat(endpoint, capsys, "a thing", "--n", "1", "--history", "item-3")
    recommender = endpoint.recommender
    messages = request_messages(recommender.template, "a thing", [3])
    prompt = recommender.template.prompt("itemsearch", [3], 1, query="a thing")
    assert tokenize(endpoint, messages) == prompt
    (ranking,) = decode(recommender.model, [prompt], recommender.trie, 1)
    assert f"item-{ranking.items_K[0]}" in lines[1].split()


def test_a_conversation_reaches_the_model_as_it_was_trained(endpoint):
    template, turns = endpoint.recommender.template, [("a thing", 7)]
    messages = request_messages(template, "cheaper", [], turns)
    assert tokenize(endpoint, messages) == template.encode_prompt("cheaper", turns)


def test_chat_errors_are_one_line(endpoint, capsys):
    with pytest.raises(InputError, match="item_id: 'nowhere' is not in the catalogue"):
        run_chat(endpoint, capsys, "--history", "nowhere")
    with pytest.raises(InputError, match="base_url: .* cannot be reached"):
        chat(["--model", str(endpoint.model_dir), "--base_url", "http://127.0.0.1:9/v1", "a thing"])
