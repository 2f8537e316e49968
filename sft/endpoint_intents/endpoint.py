"""Asking an OpenAI-compatible endpoint many questions at a time.

Waiting, retries and backoff (429, 5xx, timeouts; `Retry-After` is obeyed) are the openai client's.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from sft.endpoint_intents.answer_log import AnswerLog
from sft.endpoint_intents.questions import Question
from sid_builder.errors import InputError

# So many questions in a row without any answer, each retried: the endpoint is down, not busy.
MOST_FAILURES = 10


@dataclass(frozen=True)
class RequestOptions:
    """`request:` in YAML: how each request is made."""

    timeout_s: float = field(default=120.0, metadata={"help": "seconds to wait for one answer"})
    max_retries: int = field(default=5, metadata={"help": "after 429, 5xx and timeouts, ever further apart"})
    body: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": 'further fields of the body, such as {"temperature": 1, "max_tokens": 400}'},
    )

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise InputError(f"request.timeout_s: {self.timeout_s}; give a number of seconds above 0")
        if self.max_retries < 0:
            raise InputError(f"request.max_retries: {self.max_retries}; give 0 or more")
        taken = sorted({"model", "messages", "stream", "n"} & self.body.keys())
        if taken:
            raise InputError(f"request.body: {taken[0]!r} is not free; only further fields go here")


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and as whom; `key_variable` names the environment variable behind `api_key`."""

    base_url: str
    model: str
    api_key: str
    key_variable: str
    options: RequestOptions

    def ask_all(self, questions: Sequence[Question], log: AnswerLog, concurrency: int) -> int:
        """Ask what the log has no answer to, `concurrency` at a time, and log each answer as it comes.

        Returns:
            How many questions stayed without an answer after all retries (they are not logged).

        Raises:
            InputError: when the endpoint cannot be reached, refuses the key, does not know the model, or
                fails many times in a row.
            KeyboardInterrupt: on Ctrl-C; requests under way are dropped, answers that came are in the log.
        """
        keys = [question.key(self.model, self.options.body) for question in questions]
        todo = [pair for pair in zip(keys, questions, strict=True) if pair[0] not in log.rows]
        with tqdm(
            total=len(keys), initial=len(keys) - len(todo), desc="asking", unit="question", disable=None
        ) as bar:
            if not todo:
                return 0
            return asyncio.run(_Asking(self, log, bar).all(iter(todo), concurrency))


class _Asking:
    """One run over the questions that are left."""

    def __init__(self, endpoint: Endpoint, log: AnswerLog, bar: tqdm) -> None:
        self.endpoint, self.log, self.bar = endpoint, log, bar
        self.answered = self.unanswered = self.failed_in_a_row = 0

    async def all(self, todo: Iterator[tuple[str, Question]], concurrency: int) -> int:
        import openai

        endpoint, options = self.endpoint, self.endpoint.options
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key,
            timeout=options.timeout_s,
            max_retries=options.max_retries,
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:  # the first error cancels the other workers
                    for _ in range(concurrency):
                        group.create_task(self.work(client, todo))
            except ExceptionGroup as group_of_errors:
                raise group_of_errors.exceptions[0] from None
        return self.unanswered

    async def work(self, client: Any, todo: Iterator[tuple[str, Question]]) -> None:
        """One of the workers, which all draw from one iterator."""
        for key, question in todo:
            answer = await self.ask(client, question)
            if answer is None:
                self.unanswered += 1
            else:
                self.log.append({"key": key, "kind": question.kind, "about": question.about, **answer})
            self.bar.update()

    async def ask(self, client: Any, question: Question) -> dict[str, Any] | None:
        """What the log keeps of one answer, or None when there was none."""
        import openai
        from openai.types.chat import ChatCompletion

        endpoint = self.endpoint
        try:
            completion = await client.chat.completions.create(
                model=endpoint.model, messages=question.messages, extra_body=endpoint.options.body
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"api_key_env: {endpoint.base_url} refuses the key in ${endpoint.key_variable} "
                f"({_line(error)}); set that variable, or name another"
            ) from error
        except openai.NotFoundError as error:
            raise InputError(
                f"model: {endpoint.base_url} does not know {endpoint.model!r} ({_line(error)}); check the "
                "name, and that base_url ends where /chat/completions begins"
            ) from error
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            self.failed(error)
            return None
        except (
            openai.APIStatusError
        ) as error:  # 400, 413, 422: about this question, once any other was answered
            if not self.answered:
                raise InputError(f"request: {endpoint.base_url} rejects it ({_line(error)})") from error
            return {"rejected": _line(error)}
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise InputError(
                f"base_url: {endpoint.base_url} answers with something else than a chat completion; it "
                "usually ends in /v1"
            )
        self.answered, self.failed_in_a_row = self.answered + 1, 0
        choice = completion.choices[0]
        return {"content": choice.message.content or "", "finish_reason": choice.finish_reason}

    def failed(self, error: Exception) -> None:
        """Go on without this answer, unless there is no sense in it."""
        import openai

        self.failed_in_a_row += 1
        url, kept = self.endpoint.base_url, f"{len(self.log.rows):,} answers are kept in {self.log.path}"
        unreachable = isinstance(error, openai.APIConnectionError) and not isinstance(
            error, openai.APITimeoutError
        )
        if unreachable and not self.answered:
            raise InputError(f"base_url: {url} cannot be reached ({_line(error)}); start it or check the URL")
        if self.failed_in_a_row >= MOST_FAILURES:
            raise InputError(
                f"base_url: {url} failed {self.failed_in_a_row} times in a row ({_line(error)}); {kept}, "
                "run the same command again to go on"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
