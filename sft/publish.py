"""A model directory on the Hugging Face Hub, without the interactions it carries: they are people's data.

What is sent is what the manifest lists, nothing that merely lies in the directory, in one commit. The token
is that of the login (`hf auth login` or HF_TOKEN).
"""

import json
from pathlib import Path
from typing import Any

from prompts.opening import MODEL_KIND
from sid_builder.artifact import MANIFEST, open_artifact
from sid_builder.errors import InputError

KEPT_HERE = "interactions/"


def check_repository(repository: str) -> None:
    """InputError for a name that is not USER/REPO, and without a login: before a model is merged for it."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        known = "/" in repository
    except HFValidationError:
        known = False
    if not known:
        raise InputError(f"push_to_hub: {repository!r} is no repository; write it as USER/REPO")
    if get_token() is None:
        raise InputError(f"push_to_hub: no login for {repository}; run `hf auth login` or set HF_TOKEN")


def publish(model_dir: str | Path, repository: str, private: bool) -> str:
    """Upload a model directory; returns its address.

    Raises:
        InputError: when the Hub refuses or cannot be reached, and when `private` is asked of a repository
            that is public already.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi

    model = open_artifact(model_dir, MODEL_KIND)
    names = [name for name in model.manifest["files"] if not name.startswith(KEPT_HERE)]
    manifest = json.dumps(published_manifest(model.manifest), indent=1, sort_keys=True, ensure_ascii=False)
    files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=model.path / name) for name in names]
    files.append(CommitOperationAdd(path_in_repo=MANIFEST, path_or_fileobj=(manifest + "\n").encode()))
    api = HfApi()
    try:
        # Null leaves the visibility to the account's default, as the Hub's own client does.
        address = api.create_repo(repository, private=private or None, repo_type="model", exist_ok=True)
        if private and not api.repo_info(repository, repo_type="model").private:
            raise InputError(
                f"push_to_hub: {repository} is there already and is public; make it private or choose another"
            )
        api.create_commit(repository, files, commit_message="A model of sidereal", repo_type="model")
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"push_to_hub: {repository}: {reason}; {model_dir} is complete, merge again with --overwrite true"
        ) from error
    return str(address)


def published_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what is uploaded: without the files that are not, paths of this machine by their last
    part.
    """
    files = {name: entry for name, entry in manifest["files"].items() if not name.startswith(KEPT_HERE)}
    return {**manifest, "config": _without_paths(manifest["config"]), "files": files}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_paths(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
