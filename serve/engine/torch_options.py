"""Options of the torch engine, apart from it: the command line checks them before torch is imported."""

from dataclasses import dataclass, field

from sid_builder.errors import InputError


@dataclass(frozen=True)
class TorchOptions:
    """How the torch engine batches."""

    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; None: a GPU if there is one"})
    batch_tokens: int = field(
        default=4096,
        metadata={"help": "prompt and beam tokens decoded at once, padding included; 64k and more on a GPU"},
    )
    batch_wait_ms: float = field(
        default=0.0,
        metadata={"help": "how long an idle engine waits for others; arrivals during a batch share the next"},
    )
    max_waiting: int = field(
        default=256, metadata={"help": "requests that may wait; one more is answered with 429"}
    )

    def __post_init__(self) -> None:
        for name, least in (("batch_tokens", 1), ("batch_wait_ms", 0), ("max_waiting", 1)):
            if not getattr(self, name) >= least:
                raise InputError(f"torch_args.{name}: {getattr(self, name)}; give at least {least}")
