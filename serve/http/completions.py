"""/v1/chat/completions and /v1/completions: SIDs as text in rank order, and what items they are.

An answer is known as a whole, so a stream sends each choice in one piece.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from prompts.template import Turn
from serve.engine.recommendation import Recommendation
from serve.http.routes import ERRORS, WITH_KEY, ServiceHere, resolved_titles, sid_length, usage
from serve.http.schema import (
    Answer,
    ChatChoice,
    ChatMessage,
    ChatReply,
    ChatRequest,
    ChatResponse,
    ChoiceLogprobs,
    CompletionChoice,
    CompletionRequest,
    CompletionResponse,
    RankedSid,
    Sampling,
    TokenLogprob,
)
from serve.http.service import Prompt, Ranked, Service
from sid_builder.errors import InputError

router = APIRouter(responses=ERRORS, dependencies=WITH_KEY)
# Values that ask for nothing else than the beam's own list; anything else is refused, not ignored.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (None, 0),
    "top_p": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "stop": (None, []),
    "top_logprobs": (None, 0),
    "echo": (None, False),
}


@router.post("/v1/chat/completions", response_model=ChatResponse)
async def chat_completions(asked: ChatRequest, service: ServiceHere) -> Response | ChatResponse:
    """The conversation's last words, answered with SIDs."""
    service.check_model(asked.model)
    check_sampling(service, asked, asked.max_completion_tokens)
    text, turns = read_conversation(service, asked.messages)
    prompt = service.prompt(text, asked.history, asked.resolve_titles, turns, "messages")
    ranked = await service.rank(prompt, asked, asked.n, "n")
    groups = ranked.by_sid(asked.n)
    logprobs = await token_logprobs(service, prompt, groups) if asked.logprobs else [None] * len(groups)
    choices = [
        ChatChoice(
            index=place,
            message=ChatReply(content=group[0].sid),
            logprobs=own,
            recommendation=_ranked_sid(place, group),
        )
        for place, (group, own) in enumerate(zip(groups, logprobs, strict=True))
    ]
    shared = _shared("chatcmpl", service, prompt, ranked, groups)
    answer = ChatResponse(choices=choices, **shared)
    return stream(answer, chat_chunks(answer), asked) if asked.stream else answer


@router.post("/v1/completions", response_model=CompletionResponse)
async def completions(asked: CompletionRequest, service: ServiceHere) -> Response | CompletionResponse:
    """A request in words, or token ids as they are, answered with SIDs."""
    service.check_model(asked.model)
    check_sampling(service, asked)
    if isinstance(asked.prompt, str):
        prompt = service.prompt(asked.prompt, asked.history, asked.resolve_titles, field="prompt")
    else:
        prompt = read_token_ids(service, asked)
    ranked = await service.rank(prompt, asked, asked.n, "n")
    groups = ranked.by_sid(asked.n)
    choices = [
        CompletionChoice(index=place, text=group[0].sid, recommendation=_ranked_sid(place, group))
        for place, group in enumerate(groups)
    ]
    answer = CompletionResponse(choices=choices, **_shared("cmpl", service, prompt, ranked, groups))
    return stream(answer, completion_chunks(answer), asked) if asked.stream else answer


def check_sampling(service: Service, asked: Sampling, max_tokens: int | None = None) -> None:
    """InputError for a field that asks for something else than the beam's list."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(asked, name, None)
        if value not in neutral:
            raise InputError(f"{name}: {value!r} does not go with a beam search; leave it out")
    depth = service.index.semantic_ids.depth
    given = [value for value in (asked.max_tokens, max_tokens) if value is not None]
    if given and min(given) < depth:
        raise InputError(f"max_tokens: {min(given)} cannot hold an item; give at least {depth}, or none")
    if asked.stream_options is not None and not asked.stream:
        raise InputError("stream_options: goes with stream alone; leave it out")


def read_conversation(service: Service, messages: Sequence[ChatMessage]) -> tuple[str, list[Turn]]:
    """The last user's words, and what was said and shown before.

    Raises:
        InputError: for more characters than a request may have, an order other than user, assistant, ...,
            user, a system message that is not the one of training, and an assistant's message that is no SID
            of the catalogue.
    """
    texts = [_content(message) for message in messages]
    service.limits.at_most("messages", sum(map(len, texts)), "max_text_chars")
    rows = list(zip(messages, texts, strict=True))
    system = service.template.pack.system
    first = 0
    if messages[0].role in ("system", "developer"):
        if texts[0] != (system or ""):
            raise InputError(
                "messages[0]: the model was trained with a system message of its own, or none; leave it out"
            )
        first = 1
    turns: list[Turn] = []
    said = ""
    for place, (message, text) in enumerate(rows[first:], start=first):
        expected = "user" if (place - first) % 2 == 0 else "assistant"
        if message.role != expected:
            raise InputError(f"messages[{place}]: is of {message.role!r} where {expected!r} is due")
        if message.role == "user":
            said = text
            continue
        codes = service.index.semantic_ids.parse(text)
        items = service.index.semantic_ids.items_of(codes) if codes is not None else []
        if not items:
            raise InputError(f"messages[{place}]: {text[:80]!r} is no SID here; send answers unchanged")
        turns.append((said, items[0]))
    if messages[-1].role != "user":
        raise InputError("messages: the last one must be the user's")
    return said, turns


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content or ""


def read_token_ids(service: Service, asked: CompletionRequest) -> Prompt:
    """A prompt of token ids.

    Raises:
        InputError: for ids outside the vocabulary, too many of them, and a history beside them.
    """
    ids, size = asked.prompt, len(service.template.tokenizer)
    assert isinstance(ids, list)
    if not ids or min(ids) < 0 or max(ids) >= size:
        raise InputError(f"prompt: token ids must be within 0..{size - 1}, at least one; got {str(ids)[:60]}")
    most = service.template.pack.max_prompt_tokens
    if len(ids) > most:
        raise InputError(f"prompt: {len(ids)} tokens are over the model's max_prompt_tokens of {most}")
    if asked.history is not None:
        raise InputError("history: goes with a prompt in words; token ids are read as they are")
    return Prompt(ids, [], [])


async def token_logprobs(
    service: Service, prompt: Prompt, groups: Sequence[Sequence[Recommendation]]
) -> Sequence[ChoiceLogprobs | None]:
    """Log-probs of every SID's tokens, by scoring them."""
    if not groups:
        return []
    items = [group[0].item_index for group in groups]
    scores_CL: np.ndarray = await service.score(prompt, items)
    ids = service.index.semantic_ids
    found = []
    for item, scores in zip(items, scores_CL.tolist(), strict=True):
        tokens = [ids.token(level, int(code)) for level, code in enumerate(ids.codes_NL[item]) if code >= 0]
        content = [
            TokenLogprob(token=token, logprob=value, bytes=list(token.encode()))
            for token, value in zip(tokens, scores, strict=False)
        ]
        found.append(ChoiceLogprobs(content=content))
    return found


def _ranked_sid(place: int, group: Sequence[Recommendation]) -> RankedSid:
    first = group[0]
    return RankedSid(
        rank=place + 1,
        item_id=first.item_id,
        title=first.title,
        sid=first.sid,
        score=first.score,
        same_sid=[item.item_id for item in group[1:]],
    )


def _shared(
    prefix: str, service: Service, prompt: Prompt, ranked: Ranked, groups: Sequence[Sequence[Recommendation]]
) -> dict[str, Any]:
    """Fields of `Answer`."""
    tokens = sum(sid_length(service, group[0].item_index) for group in groups)
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.name,
        "usage": usage(prompt, tokens),
        "resolved": resolved_titles(service, prompt),
        "candidates": ranked.candidates,
    }


def chat_chunks(answer: ChatResponse) -> Iterable[list[dict[str, Any]]]:
    """The `choices` of each chunk: role, content with its recommendation, finish, choice by choice."""
    for choice in answer.choices:
        plain = {"index": choice.index, "logprobs": None, "finish_reason": None}
        yield [{**plain, "delta": {"role": "assistant", "content": ""}}]
        yield [
            {
                **plain,
                "delta": {"content": choice.message.content},
                "logprobs": choice.logprobs and choice.logprobs.model_dump(),
                "recommendation": choice.recommendation.model_dump(),
            }
        ]
        yield [{**plain, "delta": {}, "finish_reason": choice.finish_reason}]


def completion_chunks(answer: CompletionResponse) -> Iterable[list[dict[str, Any]]]:
    """The `choices` of each chunk: one for each choice."""
    for choice in answer.choices:
        yield [choice.model_dump()]


def stream(answer: Answer, chunks: Iterable[list[dict[str, Any]]], asked: Sampling) -> StreamingResponse:
    """Server-sent events: the chunks, usage where it was asked for, [DONE]."""
    kind = "chat.completion.chunk" if isinstance(answer, ChatResponse) else "text_completion"
    shared = answer.model_dump(include={"id", "created", "model", "resolved", "candidates"})
    head = {**shared, "object": kind}

    async def events() -> AsyncIterator[str]:
        for choices in chunks:
            yield f"data: {json.dumps({**head, 'choices': choices})}\n\n"
        if asked.stream_options is not None and asked.stream_options.include_usage:
            last = {**head, "choices": [], "usage": answer.usage.model_dump()}
            yield f"data: {json.dumps(last)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
