"""What a run was begun with, kept beside its checkpoints: a resumed run must be given the same.

OUTPUT_DIR/settings.json is written before the first step. Without it a resumed run would take new rewards, a
new schedule or another start without a word, and be neither the old run nor a new one.
"""

import json
from pathlib import Path
from typing import Any

from sft.run import SETTINGS_FILE
from sid_builder import cli
from sid_builder.artifact import hash_inputs, to_json, write_json
from sid_builder.errors import InputError

# What changes neither weights nor figures: where things lie, what is logged and kept, how data is loaded.
_FREE = (
    *("output_dir", "model_name_or_path", "overwrite", "plan", "resume_from_checkpoint", "run_name"),
    *("logging_dir", "logging_steps", "logging_first_step", "logging_strategy", "report_to", "project"),
    *("log_level", "log_level_replica", "log_on_each_node", "log_completions", "disable_tqdm"),
    *("num_completions_to_print", "save_total_limit", "trackio_space_id", "ddp_timeout"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
)


def settings_of(own: Any, args: Any, start: Path) -> dict[str, Any]:
    """Everything that the course of a run depends on, as JSON would give it back.

    Args:
        own: our arguments; `args`: TRL's.
        start: the model directory a run starts from, known by its content.
    """
    flags = {**to_json(own), **to_json(cli.changed_fields(args)), "num_processes": args.world_size}
    kept = {name: value for name, value in flags.items() if name not in _FREE}
    kept["start"] = hash_inputs({"start": start})["start"]["sha256"]
    return json.loads(json.dumps(kept))


def check_settings(settings: dict[str, Any], resume: bool | str) -> None:
    """Refuse to go on from checkpoint `resume` with other settings than its run was begun with.

    Raises:
        InputError: naming the first flag that differs.
    """
    if not isinstance(resume, str):
        return
    path = Path(resume).parent / SETTINGS_FILE
    if not path.is_file():
        raise InputError(
            f"resume_from_checkpoint: there is no {SETTINGS_FILE} beside {resume}, which says what its run "
            "was begun with; keep a run directory whole when it is moved"
        )
    begun = json.loads(path.read_text(encoding="utf-8"))
    for name in sorted({*begun, *settings}):
        now, then = settings.get(name), begun.get(name)
        if now == then:
            continue
        if name == "start":
            raise InputError(
                f"model_name_or_path: is not the model that the run of {resume} started from; give that one, "
                "or start another run in another output_dir"
            )
        raise InputError(
            f"{name}: {now!r}, but the run of {resume} was begun with {then!r}; give that to go on, or start "
            "another run in another output_dir"
        )


def write_settings(settings: dict[str, Any], output: Path) -> None:
    write_json(output / SETTINGS_FILE, settings)
