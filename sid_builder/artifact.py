"""Artefacts on disk: a directory is complete if and only if it holds a manifest.

A stage writes into a temporary sibling, the manifest goes in last, everything is fsynced and the directory
renamed into place. A crash leaves nothing behind that opens. Formats are npy, parquet, safetensors, JSON;
never pickle.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sid_builder.errors import InputError

MANIFEST = "manifest.json"


@dataclasses.dataclass
class Artifact:
    """A directory with its manifest: what a stage wrote and what the next one opens."""

    path: Path
    manifest: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest["summary"]

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest["config"]

    def verify_hashes(self) -> None:
        """Read every file and compare its sha256 with the manifest; InputError names the first to differ."""
        for name, entry in self.manifest["files"].items():
            if sha256_file(self.path / name) != entry["sha256"]:
                raise InputError(
                    f"{self.path / name}: content differs from {MANIFEST} (sha256); build this artefact again"
                )


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@cache
def code_version() -> dict[str, str | None]:
    """Version of sidereal and, in a git checkout, the commit (`-dirty` when tracked files were changed)."""
    try:
        release = version("sidereal")
    except PackageNotFoundError:
        release = "unknown"
    root = Path(__file__).resolve().parent.parent
    commit = None
    if (root / ".git").exists():
        describe = [
            "git",
            "-C",
            str(root),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude",
            "*",
        ]
        done = subprocess.run(describe, capture_output=True, text=True)
        commit = done.stdout.strip() or None
    return {"version": release, "commit": commit}


def hash_inputs(inputs: dict[str, str | Path]) -> dict[str, dict[str, str]]:
    """`{name: path}` -> `{name: {file, sha256}}`; an artefact directory is represented by its manifest's
    hash.
    """
    result = {}
    for name, path in inputs.items():
        path = Path(path)
        target = path / MANIFEST if path.is_dir() else path
        result[name] = {"file": path.name, "sha256": sha256_file(target) if target.is_file() else "directory"}
    return result


def to_json(value: Any) -> Any:
    """Make dataclasses, paths and numpy scalars JSON-serialisable (used for configs in manifests)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, str):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_json(path: Path, value: Any) -> None:
    """UTF-8 JSON with sorted keys, indented, newline at the end."""
    text = json.dumps(to_json(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(
    directory: Path,
    kind: str,
    format_number: int,
    config: Any,
    inputs: dict[str, dict[str, str]],
    seeds: dict[str, int],
    summary: dict[str, Any],
    ignore: tuple[str, ...] = (),
) -> None:
    """Write the manifest of a directory whose other files are final; everything is fsynced before the
    manifest is.

    Args:
        ignore: top-level names left out of the file list (trainer checkpoints, which come and go).
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or name == MANIFEST or name.split("/")[0].startswith(ignore or ("\0",)):
            continue
        _fsync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = {
        "kind": kind,
        "format": format_number,
        "config": config,
        "inputs": inputs,
        "seeds": seeds,
        "files": files,
        "summary": summary,
        "code": code_version(),
    }
    partial = directory / (MANIFEST + ".partial")
    write_json(partial, manifest)
    _fsync(partial)
    partial.replace(directory / MANIFEST)
    _fsync(directory)


@contextlib.contextmanager
def writing(
    path: str | Path,
    kind: str,
    format_number: int = 1,
    config: Any = None,
    inputs: dict[str, str | Path] | None = None,
    seeds: dict[str, int] | None = None,
    overwrite: bool = False,
) -> Iterator[Artifact]:
    """Build an artefact: yields an `Artifact` whose `path` is a temporary sibling and whose `summary` may be
    filled.

    On success the directory appears at `path` complete; on any error nothing is left at `path`.

    Raises:
        InputError: if `path` exists and `overwrite` is off, or is a directory that is no artefact of ours.
    """
    path = Path(path)
    check_output(path, overwrite)
    code_version()  # the code that runs, not what is checked out when a long stage ends
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir()
    hashed = hash_inputs(inputs or {})
    artifact = Artifact(staging, {"summary": {}})
    try:
        yield artifact
        seal(staging, kind, format_number, config, hashed, seeds or {}, artifact.summary)
        if path.exists():
            retired = staging.with_suffix(".old")
            path.rename(retired)
            staging.rename(path)
            shutil.rmtree(retired)
        else:
            staging.rename(path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output directory that would destroy something; called before any work is done."""
    if not path.exists():
        return
    if not overwrite:
        raise InputError(f"output_dir: {path} exists already; choose another directory or pass --overwrite")
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise InputError(
            f"output_dir: {path} is not an artefact of sidereal, so --overwrite will not replace it"
        )


def artifact_kind(path: str | Path) -> str | None:
    """Kind of the artefact at `path`, or None where none can be read (`open_artifact` says why)."""
    try:
        return json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError):
        return None


def open_artifact(path: str | Path, kind: str, newest_format: int = 1) -> Artifact:
    """Open a complete artefact; kind, format and file sizes are always checked.

    Raises:
        InputError: naming what is missing, of another kind, too new or truncated, and the fix.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no such directory; expected a {kind!r} artefact")
    if not manifest_path.is_file():
        raise InputError(
            f"{path}: has no {MANIFEST}, so it is incomplete or not a {kind!r} artefact; build it again"
        )
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{manifest_path}: cannot be read ({error}); build this artefact again") from error
    if manifest.get("kind") != kind:
        raise InputError(f"{path}: is a {manifest.get('kind')!r} artefact, but a {kind!r} one is needed here")
    if manifest.get("format", 0) > newest_format:
        raise InputError(
            f"{path}: format {manifest['format']} is newer than {newest_format}; upgrade sidereal"
        )
    for name, entry in manifest["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            seen = "is missing" if size is None else f"has {size} bytes"
            raise InputError(
                f"{file}: {seen}, {MANIFEST} says {entry['bytes']} bytes; build this artefact again"
            )
    return Artifact(path, manifest)
