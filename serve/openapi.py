"""Write the HTTP schema of the server as JSON.

python -m serve.openapi > openapi.json
python -m serve.openapi --output openapi.json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sid_builder.cli import parse, run


@dataclass
class OpenApiArguments:
    """Where to."""

    output: str | None = field(default=None, metadata={"help": "file to write (standard output)"})


def main(argv: Sequence[str]) -> None:
    (arguments,) = parse(OpenApiArguments, argv, description=__doc__)
    from serve.http.app import bare_app

    text = json.dumps(bare_app().openapi(), indent=2, sort_keys=True) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        Path(arguments.output).write_text(text, encoding="utf-8")
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run(main)
