"""Routes of a recommender: /v1/recommendations, /v1/score, /v1/models, /health, /metrics."""

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.security import HTTPBearer

from serve.engine.recommendation import Recommendation
from serve.http.errors import ApiError
from serve.http.schema import (
    ErrorResponse,
    Health,
    Item,
    ModelCard,
    ModelList,
    RankedItem,
    RecommendationRequest,
    RecommendationResponse,
    Resolved,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from serve.http.service import Prompt, Service

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in ("4XX", "5XX")}
# The key is checked at the border, in front of everything; here it is but written into the schema.
WITH_KEY = [Security(HTTPBearer(auto_error=False))]
router = APIRouter(responses=ERRORS, dependencies=WITH_KEY)
open_router = APIRouter(responses=ERRORS)
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


async def served(request: Request) -> Service:
    return request.app.state.service


ServiceHere = Annotated[Service, Depends(served)]


def resolved_titles(service: Service, prompt: Prompt) -> list[Resolved]:
    catalog = service.index.catalog
    return [
        Resolved(
            text=mention.text,
            item_id=catalog.item_ids[mention.item_index],
            title=catalog.titles[mention.item_index],
        )
        for mention in prompt.mentions
    ]


def usage(prompt: Prompt, completion_tokens: int) -> Usage:
    read = len(prompt.ids)
    return Usage(
        prompt_tokens=read, completion_tokens=completion_tokens, total_tokens=read + completion_tokens
    )


def sid_length(service: Service, item: int) -> int:
    """Tokens of an item's SID."""
    return int((service.index.semantic_ids.codes_NL[item] >= 0).sum())


def _ranked(item: Recommendation) -> RankedItem:
    return RankedItem(rank=item.rank, item_id=item.item_id, title=item.title, sid=item.sid, score=item.score)


@router.post("/v1/recommendations")
async def recommendations(asked: RecommendationRequest, service: ServiceHere) -> RecommendationResponse:
    """Items for a history, for words, or for both, best first."""
    service.check_model(asked.model)
    prompt = service.prompt(asked.text, asked.history, asked.resolve_titles)
    ranked = await service.rank(prompt, asked, asked.k)
    items = list(islice(ranked.items, asked.k))
    return RecommendationResponse(
        model=service.name,
        data=[_ranked(item) for item in items],
        resolved=resolved_titles(service, prompt),
        candidates=ranked.candidates,
        beam_width=ranked.beam_width,
        usage=usage(prompt, sum(sid_length(service, item.item_index) for item in items)),
    )


@router.post("/v1/score")
async def score(asked: ScoreRequest, service: ServiceHere) -> ScoreResponse:
    """Exact joint log-probs of given items' SIDs, whether or not a beam would find them."""
    service.check_model(asked.model)
    service.limits.at_most("candidates", len(asked.candidates), "max_candidates")
    items = service.item_indices(asked.candidates, "candidates")
    prompt = service.prompt(asked.text, asked.history, asked.resolve_titles)
    scores_C = (await service.score(prompt, items)).sum(axis=1, dtype="float64")
    catalog, spell = service.index.catalog, service.index.semantic_ids.spell
    data = [
        Item(item_id=catalog.item_ids[item], title=catalog.titles[item], sid=spell(item), score=float(value))
        for item, value in zip(items, scores_C, strict=True)
    ]
    tokens = sum(sid_length(service, item) for item in items)
    return ScoreResponse(
        model=service.name, data=data, resolved=resolved_titles(service, prompt), usage=usage(prompt, tokens)
    )


@router.get("/v1/models")
async def models(request: Request, service: ServiceHere) -> ModelList:
    return ModelList(data=[_card(request, service)])


@router.get("/v1/models/{model}")
async def model(model: str, request: Request, service: ServiceHere) -> ModelCard:
    service.check_model(model)
    return _card(request, service)


def _card(request: Request, service: Service) -> ModelCard:
    return ModelCard(
        id=service.name,
        created=request.app.state.started,
        engine=service.engine.name,
        num_items=service.index.trie.num_live,
        sid_levels=service.index.semantic_ids.depth,
        fields=service.filters.fields,
        max_beam_width=service.limits.max_beam_width,
    )


@open_router.get("/health")
async def health(service: ServiceHere) -> Health:
    """200 while requests are answered, else 503."""
    if not service.engine.healthy:
        raise ApiError(503, "the engine answers no requests", code="engine_down")
    return Health(status="ok")


@open_router.get("/metrics", response_class=Response)
async def metrics(service: ServiceHere) -> Response:
    """In Prometheus's text format."""
    return Response(service.metrics.text(), media_type=PROMETHEUS_TEXT)
