"""What one client may ask for. Imports nothing heavy: the command line checks it first."""

import dataclasses
from dataclasses import dataclass, field

from sid_builder.errors import InputError


@dataclass(frozen=True)
class HttpLimits:
    """Limits of a server; a request beyond one is refused with an error that names it."""

    beam_width: int = field(default=50, metadata={"help": "beams of a request that names none"})
    max_beam_width: int = field(default=256, metadata={"help": "most beams of a request"})
    max_items: int = field(default=100, metadata={"help": "most items of an answer (k and n)"})
    max_candidates: int = field(default=256, metadata={"help": "most candidates of a /v1/score request"})
    max_history: int = field(
        default=1000, metadata={"help": "most items of a history; the prompt holds the newest of them"}
    )
    max_text_chars: int = field(
        default=4000, metadata={"help": "most characters of a request, the whole conversation"}
    )
    max_body_bytes: int = field(default=262_144, metadata={"help": "largest request body"})
    body_timeout_s: float = field(default=10.0, metadata={"help": "how long a body may take to arrive"})
    max_concurrent: int = field(
        default=512, metadata={"help": "requests open at once; one more is answered with 429"}
    )
    shutdown_s: int = field(default=30, metadata={"help": "how long running requests may take after SIGTERM"})

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if value < 1 and entry.name != "body_timeout_s" or value <= 0:
                raise InputError(f"limits.{entry.name}: {value} is too small; give at least 1")
        if not self.beam_width <= self.max_beam_width:
            raise InputError(
                f"limits.beam_width: {self.beam_width} is over max_beam_width {self.max_beam_width}; lower it"
            )
        if not self.max_items <= self.max_beam_width:
            raise InputError(
                f"limits.max_items: {self.max_items} is over max_beam_width {self.max_beam_width}; lower it"
            )

    def at_most(self, field_name: str, value: int, limit: str) -> None:
        """InputError when a request's field is over the limit of that name."""
        if value > getattr(self, limit):
            raise InputError(f"{field_name}: {value} is over this server's {limit} of {getattr(self, limit)}")
