"""The directory that an evaluation leaves: results.json, table.md and a picture, sealed by its manifest."""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.evaluation.options import EvaluationOptions
from sid_builder.artifact import code_version, hash_inputs, to_json, write_json, writing


def write_results(
    options: EvaluationOptions,
    kind: str,
    figures: Mapping[str, Any],
    inputs: dict[str, str | Path],
    device: str,
    markdown: Callable[[dict[str, Any]], str],
    picture: Callable[[dict[str, Any], Path], None],
    picture_file: str,
    summary: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> dict[str, Any]:
    """Write the artefact, print its table and say where it is; returns the content of results.json.

    Args:
        kind: of the artefact.
        figures: what was found, JSON-ready; what it was found with joins them: configuration, code, seeds,
            hashes of `inputs`, machine.
        inputs: what was read, by name.
        device: that models ran on, for the machine's description.
        markdown, picture, summary: table, plot and the manifest's summary of a results.json.
    """
    config, seeds = to_json(options), {"sample_and_bootstrap": options.seed}
    results = {
        **figures,
        "config": config,
        "code": code_version(),
        "seeds": seeds,
        "inputs": hash_inputs(inputs),
        "machine": machine(device),
    }
    table, path = markdown(results), options.output_path
    with writing(path, kind, 1, config, inputs, seeds, options.overwrite) as artifact:
        write_json(artifact.path / "results.json", results)
        (artifact.path / "table.md").write_text(table, encoding="utf-8")
        picture(results, artifact.path / picture_file)
        artifact.summary.update(summary(results))
    print(table)
    print(f"wrote {path}/results.json, table.md, {picture_file}")
    return results


def machine(device: str) -> dict[str, Any]:
    """What the seconds of a results file were measured on."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": gpu,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
