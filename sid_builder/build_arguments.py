"""Arguments of `sid_builder.build` and `sid_builder.embed`: source, embedder, quantizer, repair, report."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sid_builder import EMBEDDERS, QUANTIZERS, REPAIRS, SOURCES, cli
from sid_builder.artifact import check_output, to_json
from sid_builder.errors import InputError
from sid_builder.item_text import DEFAULT_TEMPLATE, check_template
from sid_builder.registry import options_class, resolve
from sid_builder.report.page import ReportConfig
from sid_builder.semantic_ids import DEFAULT_PATTERN, SemanticIds
from sid_builder.shape import BEAUTY, Skew, fill_in
from sid_builder.thresholds import Thresholds

GIVEN = "given"


@dataclass
class BuildArguments:
    """Arguments of `python -m sid_builder.build`."""

    source: str = field(
        metadata={"help": f"Where the data comes from: one of {sorted(SOURCES)} or my.module:load."}
    )
    output_dir: str = field(metadata={"help": "Directory to write the artefact to."})
    data_path: str | None = field(
        default=None, metadata={"help": "Directory or file a source reads (its `path`)."}
    )
    source_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the source, a mapping."}
    )
    text_template: str = field(
        default=DEFAULT_TEMPLATE,
        metadata={"help": "An item's text over catalogue columns; a [part] goes when its field is empty."},
    )
    embedder: str | None = field(
        default=None,
        metadata={
            "help": f"One of {sorted(EMBEDDERS)} or my.module:Thing; none: only with quantizer {GIVEN}."
        },
    )
    embedder_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the embedder, a mapping."}
    )
    quantizer: str = field(
        default="rq_kmeans",
        metadata={
            "help": f"One of {sorted(QUANTIZERS)}, my.module:Thing, or {GIVEN!r}: the source's own SIDs."
        },
    )
    quantizer_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the quantizer, a mapping."}
    )
    repair: str = field(
        default="none", metadata={"help": f"What to do about shared SIDs: one of {sorted(REPAIRS)}."}
    )
    repair_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the repair policy, a mapping."}
    )
    thresholds: Thresholds | None = field(
        default=None,
        metadata={"help": "Limits the report must keep, or the build fails: {max_collision_rate: 0.0, ...}."},
    )
    report: ReportConfig | None = field(
        default=None, metadata={"help": "Options of the report's page, such as {map: tsne}."}
    )
    token_pattern: str = field(
        default=DEFAULT_PATTERN, metadata={"help": "Spelling of a token; needs {letter} (level) and {code}."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of embedder and quantizer (a generated source has its own)."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an artefact that is already at output_dir."}
    )

    def check(self) -> None:
        """Everything that can be known before work starts; InputError names the field."""
        check_output(Path(self.output_dir), self.overwrite)
        self.parsed_source_args()
        check_template(self.text_template)
        self.repair_options()
        SemanticIds(np.zeros((1, 1), dtype=np.int32), (1,), self.token_pattern)
        if self.quantizer == GIVEN:
            if self.quantizer_args:
                raise InputError(
                    f"quantizer_args: {self.quantizer_args} have no effect on quantizer {GIVEN!r}; drop them"
                )
        elif self.embedder is None:
            raise InputError(
                f"embedder: is not set, but quantizer {self.quantizer!r} needs one; "
                f"use one of {sorted(EMBEDDERS)}"
            )
        else:
            self.made_quantizer()
        if self.embedder is None and self.embedder_args:
            raise InputError(
                f"embedder_args: {self.embedder_args} have no effect without an embedder; "
                "set embedder or drop them"
            )
        self.made_embedder()

    def parsed_source_args(self) -> Any:
        options = options_class(resolve(SOURCES, self.source, "source"))
        values = dict(self.source_args)
        needs_path = "path" in {item.name for item in dataclasses.fields(options)}
        if self.data_path is not None:
            if not needs_path or "path" in values:
                fix = "drop it" if not needs_path else "drop source_args.path"
                raise InputError(
                    f"data_path: {self.data_path} has no effect on source {self.source!r}; {fix}"
                )
            values["path"] = self.data_path
        if needs_path:
            if "path" not in values:
                raise InputError(
                    f"data_path: is not set, but source {self.source!r} reads files; give --data_path PATH"
                )
            if not Path(str(values["path"])).exists():
                raise InputError(
                    f"data_path: {values['path']} does not exist; give the directory of the data"
                )
        args = cli.build_dataclass(options, values, "source_args")
        if hasattr(args, "check"):
            args.check()
        return args

    def made_embedder(self) -> Any:
        if self.embedder is None:
            return None
        made = resolve(EMBEDDERS, self.embedder, "embedder")
        return made(cli.build_dataclass(options_class(made), self.embedder_args, "embedder_args"), self.seed)

    def made_quantizer(self, num_items: int = 1, skew: Skew = BEAUTY) -> Any:
        """The quantizer, unfitted; `auto` codebook sizes become what so many items need."""
        made = resolve(QUANTIZERS, self.quantizer, "quantizer")
        values = fill_in(self.quantizer_args, num_items, skew)
        return made(cli.build_dataclass(options_class(made), values, "quantizer_args"), self.seed)

    @property
    def has_codebook_sizes(self) -> bool:
        """Whether levels and codes per level of the quantizer are the user's to choose."""
        options = options_class(resolve(QUANTIZERS, self.quantizer, "quantizer"))
        return {"levels", "codes_per_level"} <= {item.name for item in dataclasses.fields(options)}

    def repair_options(self) -> Any:
        options = options_class(resolve(REPAIRS, self.repair, "repair"))
        return cli.build_dataclass(options, self.repair_args, "repair_args")

    @property
    def data_dir(self) -> Path | None:
        """Where relative paths in a catalogue start from: the data's directory, or that of its file."""
        if self.data_path is None:
            return None
        path = Path(self.data_path)
        return path if path.is_dir() else path.parent

    @property
    def work_dir(self) -> Path:
        """Beside the output, on the same disk: what an interrupted run leaves for the next one like it."""
        settings = {
            key: value for key, value in to_json(self).items() if key not in ("output_dir", "overwrite")
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        output = Path(self.output_dir)
        return output.parent / f".{output.name}.{digest}.work"

    @property
    def embedder_inputs(self) -> dict[str, Path]:
        """Files the embedder reads, for the manifest."""
        file = self.embedder_args.get("file") if self.embedder == "precomputed" else None
        return {} if file is None else {"embeddings": Path(file)}
