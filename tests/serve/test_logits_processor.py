"""The logits processor through both of vLLM's interfaces, without an engine.

A small scheduler of our own moves, swaps, drops and preempts rows as vLLM's runners do; after every step the
legal set of each row is compared with a reference that walks the whole output by hand.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sid_builder.errors import InputError
from tests.builders import make_index, make_recommender

pytest.importorskip("vllm", reason="vLLM is not installed (extra [cpu] or [vllm])")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

from serve.vllm.logits_processor import SidLogitsProcessor
from sft.model_directory import write_model_directory

VOCABULARY = 700


def variable_index():
    """SIDs of one, two and three tokens, prefix-free; some are shared."""
    rng = np.random.default_rng(3)
    codes = np.unique(rng.integers(0, 6, (60, 3)), axis=0)
    codes[codes[:, 0] == 0] = [0, -1, -1]
    short = (codes[:, 0] == 1) | ((codes[:, 0] == 2) & (codes[:, 1] == 3))
    codes[short, 2] = -1
    return make_index(codes, (6, 6, 6))


@pytest.fixture(scope="module", params=["fixed", "variable"])
def setting(request, small_index, tmp_path_factory):
    """(model directory, index, template)"""
    index = small_index if request.param == "fixed" else variable_index()
    recommender = make_recommender(index)
    path = tmp_path_factory.mktemp("served") / request.param
    template = recommender.template
    write_model_directory(path, recommender.model, recommender.tokenizer, template.pack, index, None)
    return path, index, template


def config_of(path):
    return SimpleNamespace(model_config=SimpleNamespace(model=str(path)))


def v1(path) -> SidLogitsProcessor:
    return SidLogitsProcessor(config_of(path), torch.device("cpu"), False)


def params(mode=None, max_tokens=400, **extra):
    extra_args = extra if mode is None else {"sid_mode": mode, **extra}
    return SamplingParams(max_tokens=max_tokens, extra_args=extra_args or None)


class Reference:
    """Legal tokens of an output, by walking all of it: the long way round."""

    def __init__(self, index, template) -> None:
        self.trie, self.end_id = index.trie, template.end_id
        self.token_ids, self.code_of = template.vocabulary.token_ids, template.vocabulary.code_of
        self.sid_ids = set(self.code_of)

    def children(self, codes):
        node = self.trie.node_of(codes)
        if node is None or len(codes) == self.trie.depth:
            return set()
        row, _ = self.trie.children(node, len(codes))
        return {int(self.token_ids[len(codes)][code]) for code in row if code != 0xFFFF}

    def legal(self, mode, outputs, room):
        everything = set(range(VOCABULARY))
        if mode == "off":
            return everything
        codes = []
        for token in outputs:
            level, code = self.code_of.get(token, (None, None))
            if mode == "items" and not self.children(codes):
                return {self.end_id}
            codes = [*codes, code] if level == len(codes) and self.children(codes) else []
            if mode == "inline" and not self.children(codes):
                codes = []
        following = self.children(codes)
        if mode == "items":
            return following or {self.end_id}
        if codes:
            return following
        text = everything - self.sid_ids
        return text | following if room >= self.trie.depth else text


def check_row(reference, raw, seen, mode, outputs, room):
    """The processed row is log_softmax at legal ids and -inf elsewhere."""
    legal = torch.tensor(sorted(reference.legal(mode, outputs, room)))
    assert set(torch.nonzero(seen > -torch.inf).flatten().tolist()) == set(legal.tolist())
    torch.testing.assert_close(seen[legal], raw.log_softmax(dim=0)[legal], atol=2e-6, rtol=0)


class V1Runner:
    """A batch kept as vLLM's InputBatch keeps it: holes are filled from the end, rows are swapped at will."""

    def __init__(self, processor, rng) -> None:
        self.processor, self.rng = processor, rng
        self.rows: list = []

    def step(self, finished=(), joined=()):
        """Rows to drop, requests (params, outputs) to add; also swaps two rows now and then."""
        removed = sorted(finished, reverse=True)
        holes, added, moved = sorted(removed), [], []
        for request in joined:
            row = holes.pop(0) if holes else len(self.rows)
            if row == len(self.rows):
                self.rows.append(None)
            self.rows[row] = request
            added.append((row, request[0], [1, 2], request[1]))
        for hole in holes:
            self.rows[hole] = None
        while None in self.rows:
            if self.rows[-1] is None:
                self.rows.pop()
                continue
            hole, last = self.rows.index(None), len(self.rows) - 1
            self.rows[hole] = self.rows.pop()
            moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
        left = [row for row in removed if row not in [entry[0] for entry in added]]
        if len(self.rows) > 1 and self.rng.random() < 0.4:
            one, two = (int(row) for row in self.rng.choice(len(self.rows), 2, replace=False))
            self.rows[one], self.rows[two] = self.rows[two], self.rows[one]
            moved.append((one, two, MoveDirectionality.SWAP))
        update = BatchUpdate(len(self.rows), left, added, moved) if left or added or moved else None
        self.processor.update_state(update)

    def apply(self, raw):
        return self.processor.apply(raw)


@pytest.mark.parametrize("seed", range(3))
def test_random_walks_stay_legal_while_rows_move_and_are_preempted(setting, seed):
    path, index, template = setting
    reference, rng = Reference(index, template), np.random.default_rng(seed)
    torch.manual_seed(seed)
    runner, waiting, done = V1Runner(v1(path), rng), [], 0
    answers = []
    for _ in range(120):
        joined = [waiting.pop()] if waiting and rng.random() < 0.7 else []
        for _ in range(int(rng.integers(0, 3))):
            mode = str(rng.choice(["items", "items", "inline", "off"]))
            joined.append(
                (params(mode if rng.random() < 0.8 or mode != "items" else None, max_tokens=30), [])
            )
        finished = [
            row for row, (_, outputs) in enumerate(runner.rows) if len(outputs) >= 30 or answered(outputs)
        ]
        answers += [runner.rows[row] for row in finished]
        for row, request in enumerate(runner.rows):  # preemption: leaves, comes back with its outputs
            if row not in finished and rng.random() < 0.05:
                waiting.append(request)
                finished.append(row)
        runner.step(finished, joined)
        if not runner.rows:
            continue
        raw = torch.randn(len(runner.rows), VOCABULARY) * 3
        raw[:, template.vocabulary.all_ids] += 3.0  # so that free text often begins an SID
        seen = runner.apply(raw.clone())
        for row, (own, outputs) in enumerate(runner.rows):
            mode = (own.extra_args or {}).get("sid_mode", "items")
            check_row(reference, raw[row], seen[row], mode, outputs, own.max_tokens - len(outputs))
            outputs.append(int(torch.multinomial(seen[row].softmax(dim=0), 1)))
            done += 1
    assert done > 500
    items = [
        outputs for own, outputs in answers if (own.extra_args or {}).get("sid_mode", "items") == "items"
    ]
    assert len(items) > 20
    for outputs in items:
        codes = template.vocabulary.decode([token for token in outputs if token != template.end_id])
        assert index.semantic_ids.items_of(codes), outputs


def answered(outputs):
    return len(outputs) >= 4 and outputs[-1] == outputs[-2]  # the end token was forced twice


def test_inline_text_holds_only_whole_items_and_begins_none_it_cannot_end(setting):
    path, index, template = setting
    processor = v1(path)
    outputs: list[list[int]] = [[] for _ in range(32)]
    own = [params("inline", max_tokens=int(count)) for count in np.arange(32) + 1]
    processor.update_state(BatchUpdate(32, [], [(i, own[i], None, outputs[i]) for i in range(32)], []))
    torch.manual_seed(0)
    for _ in range(32):
        raw = torch.randn(32, VOCABULARY)
        raw[:, template.vocabulary.all_ids] += 4.0
        seen = processor.apply(raw)
        for row in range(32):
            if len(outputs[row]) < own[row].max_tokens:
                outputs[row].append(int(torch.multinomial(seen[row].softmax(dim=0), 1)))
    found = 0
    for ids in outputs:
        codes: list[int] = []
        for token in [*ids, -1]:
            level, code = template.vocabulary.code_of.get(token, (0, None))
            if level == 0 and codes:
                assert index.semantic_ids.items_of(tuple(codes)), codes
                found, codes = found + 1, []
            if code is not None:
                assert level == len(codes)
                codes.append(code)
    assert found > 50


def test_a_start_node_is_walked_from_there(setting):
    path, index, template = setting
    reference, processor = Reference(index, template), v1(path)
    codes = tuple(int(code) for code in index.semantic_ids.codes_NL[-1] if code >= 0)
    node = index.trie.node_of(codes[:1])
    ids = template.vocabulary.encode(index.semantic_ids.codes_NL[-1])
    start = params(sid=[1, node], max_tokens=1)
    outside = params(sid=[1, 10**6], max_tokens=1)
    later = params(sid=[1, node])
    beyond = params(sid=[9, 0])
    added = [(0, start, None, []), (1, outside, None, []), (2, later, None, ids[1:2]), (3, beyond, None, [])]
    processor.update_state(BatchUpdate(4, [], added, []))
    raw = torch.randn(4, VOCABULARY)
    seen = processor.apply(raw.clone())
    check_row(reference, raw[0], seen[0], "items", ids[:1], 99)
    check_row(reference, raw[2], seen[2], "items", ids[:2], 99)
    for row in (1, 3):  # nothing legal: an ended answer, never a crash of the engine
        assert torch.nonzero(seen[row] > -torch.inf).flatten().tolist() == [template.end_id]


def test_all_rows_off_are_log_softmax_and_padding_ids_are_no_text(setting):
    path, _, template = setting
    processor = v1(path)
    processor.update_state(
        BatchUpdate(2, [], [(0, params("off"), None, []), (1, params("inline"), None, [])], [])
    )
    raw = torch.randn(2, VOCABULARY)
    seen = processor.apply(raw.clone())
    torch.testing.assert_close(seen[0], raw[0].log_softmax(dim=0))
    assert not processor.is_argmax_invariant()
    assert list(LogitsProcessors([processor]).non_argmax_invariant) == [processor]


def test_placeholder_ids_are_refused(setting):
    processor = v1(setting[0])
    processor.update_state(BatchUpdate(1, [], [(0, params(), None, [-1])], []))
    with pytest.raises(RuntimeError, match="--logits-processors"):
        processor.apply(torch.zeros(1, VOCABULARY))


class V2Runner:
    """Slots that never move, rows in a new order every step, tokens in one table: what that runner shows."""

    def __init__(self, path, num_slots=8, width=64) -> None:
        self.tokens = torch.zeros(num_slots, width, dtype=torch.int32)
        self.prompt_len = torch.zeros(num_slots, dtype=torch.int32)
        self.total_len = torch.zeros(num_slots, dtype=torch.int32)
        states = LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=num_slots,
            vocab_size=VOCABULARY,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(gpu=self.prompt_len),
            prefill_len=SimpleNamespace(gpu=self.prompt_len),
            total_len=SimpleNamespace(gpu=self.total_len),
        )
        self.processor = SidLogitsProcessor(config_of(path), states)

    def add(self, slot, own, prompt, outputs=()):
        ids = [*prompt, *outputs]
        self.tokens[slot] = 7  # whatever a former request left there
        self.tokens[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.prompt_len[slot], self.total_len[slot] = len(prompt), len(ids)
        assert self.processor.add_request(slot, own) is True
        self.processor.apply_staged_writes()

    def say(self, slot, token):
        self.tokens[slot, self.total_len[slot]] = token
        self.total_len[slot] += 1

    def apply(self, slots, raw, drafts=None):
        """`drafts[slot]`: tokens guessed by speculative decoding, which are in input_ids alone."""
        rows, local, position, fed = [], [], [], []
        for slot in slots:
            last = int(self.total_len[slot]) - 1
            for offset, token in enumerate([int(self.tokens[slot, last]), *(drafts or {}).get(slot, [])]):
                rows.append(slot)
                local.append(offset)
                position.append(last + offset)
                fed.append(token)
        as_tensor = lambda values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
        context = LogitsContext(
            expanded_idx_mapping=as_tensor(rows),
            idx_mapping=as_tensor(slots),
            idx_mapping_np=np.array(slots),
            expanded_local_pos=as_tensor(local),
            input_ids=as_tensor(fed),
            pos=as_tensor(position),
            seq_lens_upper_bound_np=np.array([int(self.total_len[slot]) for slot in slots]),
        )
        return self.processor.apply(raw, context)


def test_v2_agrees_with_the_reference_while_slots_are_recycled_and_rows_reordered(setting):
    path, index, template = setting
    reference, rng, runner = Reference(index, template), np.random.default_rng(1), V2Runner(path)
    torch.manual_seed(1)
    live: dict[int, tuple] = {}
    for step in range(80):
        slot = int(rng.integers(0, 8))
        if slot not in live or len(live[slot][1]) > 12:
            mode = str(rng.choice(["items", "inline", "off"]))
            # An SID in the prompt is not part of the answer; a preempted request comes back with its outputs.
            outputs = list(live[slot][1][:3]) if slot in live and live[slot][0] == mode else []
            live[slot] = (mode, outputs, 30)
            prompt = [5, *template.vocabulary.encode(index.semantic_ids.codes_NL[step % 20])][: 1 + step % 4]
            runner.add(slot, params(mode, max_tokens=30), prompt, outputs)
        slots = [int(one) for one in rng.permutation(list(live))]
        raw = torch.randn(len(slots), VOCABULARY)
        raw[:, template.vocabulary.all_ids] += 3.0
        seen = runner.apply(slots, raw.clone())
        for row, one in enumerate(slots):
            mode, outputs, limit = live[one]
            check_row(reference, raw[row], seen[row], mode, outputs, limit - len(outputs))
            token = int(torch.multinomial(seen[row].softmax(dim=0), 1))
            outputs.append(token)
            runner.say(one, token)


def test_v2_reads_draft_tokens(setting):
    path, index, template = setting
    reference, runner = Reference(index, template), V2Runner(path)
    ids = template.vocabulary.encode(index.semantic_ids.codes_NL[-1])
    runner.add(3, params(), [5, 6])
    runner.add(1, params(), [5], ids[:1])
    raw = torch.randn(1 + len(ids) + 1, VOCABULARY)
    seen = runner.apply([1, 3], raw.clone(), drafts={3: ids})
    check_row(reference, raw[0], seen[0], "items", ids[:1], 99)
    for offset in range(len(ids) + 1):
        check_row(reference, raw[1 + offset], seen[1 + offset], "items", ids[:offset], 99)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (params("beams"), r"sid_mode: 'beams' is not one of \['inline', 'items', 'off'\]"),
        (params(["items"]), "sid_mode"),
        (params(sid=[1]), r"sid: \[1\] is not \[level, node\]"),
        (params(sid=[0, -1]), "sid: "),
        (params(sid=[1, 10**6]), r"sid: \[1, 1000000\] is no inner node"),
        (params("inline", sid=[0, 0]), "goes with sid_mode 'items'"),
        (params(max_tokens=2), "max_tokens: 2 cannot hold an item; give at least 3"),
        (SamplingParams(repetition_penalty=1.1), "repetition_penalty: 1.1"),
        (SamplingParams(presence_penalty=0.5, extra_args={"sid_mode": "inline"}), "presence_penalty: 0.5"),
        (SamplingParams(max_tokens=9, min_tokens=2), "min_tokens: 2"),
        (SamplingParams(max_tokens=9, stop_token_ids=[5]), "stop_token_ids"),
        (SamplingParams(max_tokens=9, allowed_token_ids=[5]), "allowed_token_ids"),
    ],
)
def test_requests_that_could_end_in_something_else_are_refused(setting, monkeypatch, own, words):
    monkeypatch.setenv("SIDEREAL_MODEL", str(setting[0]))
    with pytest.raises(InputError, match=words):
        SidLogitsProcessor.validate_params(own)


def test_good_requests_pass(setting, monkeypatch):
    monkeypatch.setenv("SIDEREAL_MODEL", str(setting[0]))
    good = (params(), params(max_tokens=3), params("off", max_tokens=1), params("inline", max_tokens=1))
    for own in (*good, params(sid=[1, 0], max_tokens=1), SamplingParams(max_tokens=None, temperature=2.0)):
        assert SidLogitsProcessor.validate_params(own) is None
    monkeypatch.delenv("SIDEREAL_MODEL")
    assert (
        SidLogitsProcessor.validate_params(params(max_tokens=1)) is None
    )  # without the directory the bound is not known


def test_module_loads_neither_trl_nor_model_code():
    unwanted = "{'trl', 'peft', 'transformers.models.qwen3'}"
    code = f"import sys, serve.vllm.logits_processor; print({unwanted} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "set()"


def test_cpu_head_sizes_are_those_of_the_installed_vllm():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from serve.launch import CPU_HEAD_SIZES

    assert CPUAttentionBackend.get_supported_head_sizes() == CPU_HEAD_SIZES
