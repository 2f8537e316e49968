"""The trie inside vLLM: `vllm serve --logits-processors serve.vllm.logits_processor:SidLogitsProcessor`.

Per request, through `extra_args` (`vllm_xargs` over HTTP):
    sid_mode: "items" (default: the answer is one catalogue item), "inline" (free text in which every SID is a
        catalogue item) or "off".
    sid: [level, node], the trie node an "items" request starts from (a beam's prefix lies in its prompt).

Run with `--logprobs-mode processed_logits`: the logits written here are log-probs over the full vocabulary,
so what vLLM reports adds up to transformers' constrained beam scores (divided by the temperature where one is
set). Never register it as an entry point: vLLM loads those into every engine on the machine, and its V1
runner shows such processors placeholder ids under async scheduling.

Legend: N rows of a step, L levels, V vocabulary, S request slots.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor

from prompts.opening import open_template
from serve.decoding.sid_walk import MODES, OFF, RowTokens, SidWalk
from serve.decoding.trie_step import DeviceTrie
from sid_builder.errors import InputError
from sid_builder.trie import SidTrie

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Names the model directory to the frontend process, which checks requests but is given no configuration.
MODEL_VARIABLE = "SIDEREAL_MODEL"
_UNLIMITED = 1 << 40


class Rule(NamedTuple):
    """What one request asked for: index into MODES, trie start, most tokens it may say."""

    mode: int
    level: int
    node: int
    limit: int


class SidLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Both of vLLM's interfaces: V1 (`update_state`, `apply`) and V2 (`add_request`, `apply` with a
    context).
    """

    def __init__(self, vllm_config: "VllmConfig", *args: Any) -> None:
        """V1 passes (device, is_pin_memory), V2 passes (request states).

        Raises:
            InputError: when the model is no complete model directory of ours.
        """
        template = open_template(vllm_config.model_config.model)
        self.requests: dict[int, tuple[Rule, list[int]]] = {}
        if len(args) == 2:
            device = torch.device(args[0])
        else:
            (self.states,) = args
            device = torch.device(self.states.device)
            self.rules_SX = np.zeros((self.states.max_num_reqs, len(Rule._fields)), dtype=np.int64)
            self.device_rules_SX = torch.from_numpy(self.rules_SX.copy()).to(device)
            self.staged = False
        self.device = device
        self.walk = SidWalk(DeviceTrie(template.index.trie, template.vocabulary, device), template.end_id)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse, before it reaches the engine, what could end in anything but a catalogue item (HTTP 400).

        The bounds of `max_tokens` and `sid` need the catalogue: they are checked when `serve.launch` has
        named the model directory in SIDEREAL_MODEL. The engine itself treats a start outside the trie as a
        finished answer.
        """
        rule = read_rule(sampling_params)
        if rule.mode == OFF:
            return
        mode = MODES[rule.mode]
        for name, neutral in _NEUTRAL.items():
            value = getattr(sampling_params, name)
            if value != neutral and value:
                raise InputError(
                    f"{name}: {value!r} does not go with sid_mode {mode!r}; leave it out, or use 'off'"
                )
        if mode == "inline":
            return
        for name in ("min_tokens", "stop_token_ids"):
            if value := getattr(sampling_params, name):
                raise InputError(
                    f"{name}: {value!r} does not go with an answer that is one item; leave it out"
                )
        if model_dir := os.environ.get(MODEL_VARIABLE):
            sizes = _level_sizes(model_dir)
            if rule.level >= len(sizes) or rule.node >= sizes[rule.level]:
                start = [rule.level, rule.node]
                raise InputError(f"sid: {start} is no inner node of the trie; levels go to {len(sizes) - 1}")
            if "sid" not in (sampling_params.extra_args or {}) and rule.limit < len(sizes):
                needed = len(sizes)
                raise InputError(
                    f"max_tokens: {rule.limit} cannot hold an item; give at least {needed}, or none"
                )

    def is_argmax_invariant(self) -> bool:
        return False

    # V1 runner: rows are batch positions, which move; vLLM's own helper keeps a dict over them.

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow added, removed and moved rows; `output_ids` is vLLM's running list, read in `apply`."""

        def entry(params: SamplingParams, _: Any, output_ids: list[int]) -> tuple[Rule, list[int]] | None:
            rule = read_rule(params)
            return None if rule.mode == OFF else (rule, output_ids)

        process_dict_updates(self.requests, batch_update, entry)

    def _rows_of_requests(self, num_rows: int) -> RowTokens:
        depth = self.walk.trie.depth
        rules = np.zeros((num_rows, len(Rule._fields)), dtype=np.int64)
        tail = np.full((num_rows, depth), -1, dtype=np.int64)
        count = np.zeros(num_rows, dtype=np.int64)
        for row, (rule, output_ids) in self.requests.items():
            rules[row] = rule
            count[row] = len(output_ids)
            last = output_ids[-depth:]
            if last:
                tail[row, depth - len(last) :] = last
                if min(last) < 0:
                    raise RuntimeError("vLLM shows placeholder ids; load this class with --logits-processors")
        return _row_tokens(*(torch.from_numpy(array).to(self.device) for array in (rules, tail, count)))

    # V2 runner: slots stay, rows are reordered every step, tokens lie on the device.

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Stage a slot's rule. Always True: rows in mode "off" are log-softmax as well."""
        self.rules_SX[req_idx] = read_rule(sampling_params)
        self.staged = True
        return True

    def apply_staged_writes(self) -> None:
        if self.staged:
            self.device_rules_SX.copy_(torch.from_numpy(self.rules_SX))
            self.staged = False

    def _rows_of_context(self, ctx: LogitsContext) -> RowTokens:
        depth = self.walk.trie.depth
        slot_N = ctx.expanded_idx_mapping.long()
        position_N = ctx.pos.long()
        back_L = torch.arange(depth - 1, -1, -1, device=self.device)
        at_NL = position_N[:, None] - back_L
        history = self.states.all_token_ids.gpu
        tail_NL = history[slot_N[:, None], at_NL.clamp(0, history.shape[1] - 1)].long()
        # Draft tokens of speculative decoding are in input_ids only: a request's rows follow one another.
        row_NL = torch.arange(len(slot_N), device=self.device)[:, None] - back_L
        drafted = back_L <= ctx.expanded_local_pos.long()[:, None]
        tail_NL = torch.where(drafted, ctx.input_ids.long()[row_NL.clamp(min=0)], tail_NL)
        begin_N = self.states.prompt_len.gpu[slot_N].long()
        tail_NL = torch.where(at_NL >= begin_N[:, None], tail_NL, -1)
        count_N = (position_N + 1 - begin_N).clamp(min=0)
        return _row_tokens(self.device_rules_SX[slot_N], tail_NL, count_N)

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        """Constrain float32 logits [N, V] in place; see `SidWalk.constrain`."""
        rows = self._rows_of_requests(len(logits)) if ctx is None else self._rows_of_context(ctx)
        return self.walk.constrain(logits, self.walk.places(rows))


# Sampling parameters that could forbid every legal token, or that vLLM's V1 runner applies after the trie.
_NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "allowed_token_ids": None,
    "bad_words": [],
    "structured_outputs": None,
}


def read_rule(params: SamplingParams) -> Rule:
    """The rule of a request; InputError for an unknown mode or a malformed start."""
    extra = params.extra_args or {}
    mode = extra.get("sid_mode", "items")
    if mode not in MODES:
        raise InputError(f"sid_mode: {mode!r} is not one of {sorted(MODES)}; leave it out for 'items'")
    start = extra.get("sid", [0, 0])
    whole = isinstance(start, (list, tuple)) and all(type(value) is int for value in start)
    if not whole or len(start) != 2 or min(start) < 0 or max(start) >= 1 << 40:
        raise InputError(f"sid: {start!r} is not [level, node], two whole numbers; leave it out for the root")
    if mode != "items" and "sid" in extra:
        raise InputError(f"sid: a start node goes with sid_mode 'items', not {mode!r}; leave one of them out")
    limit = _UNLIMITED if params.max_tokens is None else params.max_tokens
    return Rule(MODES.index(mode), start[0], start[1], limit)


def _row_tokens(rules_NX: torch.Tensor, tail_NL: torch.Tensor, count_N: torch.Tensor) -> RowTokens:
    return RowTokens(rules_NX[:, 0], tail_NL, count_N, rules_NX[:, 3], rules_NX[:, 1:3])


@lru_cache(maxsize=4)
def _level_sizes(model_dir: str) -> tuple[int, ...]:
    """Number of nodes that have children, per level, the root's first; memory-mapped, nothing is read."""
    trie = SidTrie.load(Path(model_dir) / "sid_index" / "trie")
    return (1, *(len(tok) for tok in trie.tok[:-1]))
