"""Bodies of requests and answers. `python -m serve.openapi` writes what they make up."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _whole_characters(text: str) -> str:
    """JSON may hold halves of characters, which no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a character")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
ItemReference = Annotated[
    Text | int, Field(description="an item_id; or a title, in which case and punctuation do not matter")
]
FILTER_EXAMPLE: dict[str, Any] = {
    "and": [{"field": "category", "in": ["Tents"]}, {"field": "price", "max": 200}]
}


class Body(BaseModel):
    """Unknown fields, strings for numbers and NaN are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Asked(Body):
    """What may be asked for beside the words, on every route that answers with items."""

    history: list[ItemReference] | None = Field(None, description="items chosen so far, oldest first")
    resolve_titles: bool = Field(
        True,
        description="without a history: titles of at least two words that stand in the text are its history",
    )
    filters: dict[str, Any] | None = Field(
        None,
        description="which items may be answered: {field, eq | in | min, max}, under and, or, not",
        json_schema_extra={"examples": [FILTER_EXAMPLE]},
    )
    exclude_items: list[ItemReference] = Field([], description="items that may not be answered")
    allow_items: list[ItemReference] | None = Field(None, description="the only items that may be answered")
    exclude_history: bool = Field(
        True, description="leave the given history out of the answer; titles found in the text stay in"
    )
    beam_width: int | None = Field(
        None, ge=1, description="beams of the search, at least as many as items are wanted; more find better"
    )


class RecommendationRequest(Asked):
    """History, words, or both."""

    model: str | None = None
    text: Text = Field("", description="what is wanted, in plain words")
    k: int = Field(10, ge=1, description="items to answer with")


class ScoreRequest(Body):
    """How likely each candidate is behind a history, words, or both."""

    model: str | None = None
    history: list[ItemReference] | None = None
    text: Text = ""
    resolve_titles: bool = True
    candidates: list[ItemReference] = Field(min_length=1)


class StreamOptions(Body):
    include_usage: bool = False


class Sampling(Body):
    """OpenAI's fields for which there is nothing to choose here: the list is the beam's, best first."""

    temperature: float | None = Field(None, description="0 or left out")
    top_p: float | None = Field(None, description="1 or left out")
    presence_penalty: float | None = Field(None, description="0 or left out")
    frequency_penalty: float | None = Field(None, description="0 or left out")
    stop: str | list[str] | None = Field(None, description="left out")
    seed: int | None = Field(None, description="changes nothing: answers are the same each time")
    user: str | None = Field(None, description="read by nobody")
    n: int = Field(1, ge=1, description="choices, one SID each, in rank order")
    max_tokens: int | None = Field(None, ge=1, description="at least an SID's tokens")
    stream: bool = False
    stream_options: StreamOptions | None = None


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    name: str | None = None


class ChatRequest(Asked, Sampling):
    """A conversation that ends with the user; what the assistant said are SIDs it answered with."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = Field(None, description="log-prob of every SID token, by a second pass")
    top_logprobs: int | None = Field(None, description="0 or left out")


class CompletionRequest(Asked, Sampling):
    """Words put into the wording of training, as in a chat; or token ids, which are read as they are."""

    model: str
    prompt: Text | list[int]
    echo: bool | None = Field(None, description="false or left out")


class Item(BaseModel):
    """`score` is the log-prob of the item's SID over the whole vocabulary; items of one SID share it."""

    item_id: str
    title: str
    sid: str = Field(description="as training spells it, such as <a_12><b_200><c_7>")
    score: float


class RankedItem(Item):
    rank: int


class RankedSid(RankedItem):
    """The SID's first item; `same_sid` are the further ones the request may get, most frequent first."""

    same_sid: list[str]


class Resolved(BaseModel):
    """Words of the request that are an item's title."""

    text: str
    item_id: str
    title: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RecommendationResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[RankedItem]
    resolved: list[Resolved] = Field(description="titles found in the text that are its history")
    candidates: int = Field(description="items the request may get; fewer than k of them give a shorter list")
    beam_width: int
    usage: Usage


class ScoreResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Item] = Field(description="in the order of the candidates")
    resolved: list[Resolved]
    usage: Usage


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]


class ChatReply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: ChatReply
    finish_reason: Literal["stop"] = "stop"
    logprobs: ChoiceLogprobs | None = None
    recommendation: RankedSid


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop"] = "stop"
    logprobs: None = None
    recommendation: RankedSid


class Answer(BaseModel):
    """What completions of both kinds share."""

    id: str
    created: int
    model: str
    usage: Usage
    resolved: list[Resolved]
    candidates: int


class ChatResponse(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class CompletionResponse(Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class ModelCard(BaseModel):
    """`fields` are what filters may be about."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["sidereal"] = "sidereal"
    engine: str
    num_items: int
    sid_levels: int
    fields: list[str]
    max_beam_width: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "stopping"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail
