"""The policy: a merged model directory opened for training, and the model that a training leaves of it."""

from pathlib import Path
from typing import Any

from prompts.opening import open_template
from rl.arguments import PolicyArgs
from serve.decoding.recommender import Recommender
from sft.model_card import base_model_of
from sft.model_directory import write_model_directory
from sft.start import quantised


def load_policy(own: PolicyArgs, args: Any) -> Recommender:
    """Open the model directory on the trainer's device; with `load_in_4bit`, its linear layers in nf4.

    Raises:
        InputError: when the directory is incomplete, its parts disagree, or it carries no interactions.
    """
    policy = _quantised(own) if own.load_in_4bit else _opened(own, args)
    assert len(policy.interactions.users) == policy.interactions.num_sequences
    for module in policy.model.modules():
        # Rollouts and the reference have no dropout: with it in the update, the policy would differ from both
        # at step 0. TRL's disable_dropout reaches nn.Dropout only. The saved config keeps its value.
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return policy


def whole_start(own: PolicyArgs, args: Any) -> Any:
    """The weights that a run starts from, as they are on disk, whatever it trains on."""
    return _opened(own, args).model


def _opened(own: PolicyArgs, args: Any) -> Recommender:
    return Recommender.load(own.model_name_or_path, str(args.device), own.dtype)


def _quantised(own: PolicyArgs) -> Recommender:
    from transformers import AutoConfig

    path, template = Path(own.model_name_or_path), open_template(own.model_name_or_path)
    saved = AutoConfig.from_pretrained(path).dtype
    dtype = str(saved or "float32").removeprefix("torch.") if own.dtype == "auto" else own.dtype
    return Recommender(quantised(path, dtype), template.tokenizer, template.index, template, path)


def plain_result(policy: Any, own: PolicyArgs, args: Any) -> Any:
    """A trained policy without adapters: what is judged, and written.

    A quantised base is left behind: the adapter is merged into the weights that were quantised, which it has
    never seen as they are. The verdict is about the result of that.

    Args:
        policy: plain, or wrapped by PEFT, whose layers are then merged in place.
    """
    if not hasattr(policy, "merge_and_unload"):
        return policy
    if not own.load_in_4bit:
        return policy.merge_and_unload()
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapter = get_peft_model_state_dict(policy)
    whole = get_peft_model(whole_start(own, args), own.peft_config())
    set_peft_model_state_dict(whole, adapter)
    return whole.merge_and_unload()


def write_policy(path: Path, model: Any, start: Recommender, config: Any, seed: int, verdict: str) -> None:
    """Write a plain model as a model directory; all that is not weights is that of `start`."""
    assert start.path is not None
    write_model_directory(
        path,
        model,
        start.tokenizer,
        start.template.pack,
        start.index,
        start.path / "interactions",
        config=config,
        inputs={"model": start.path},
        seeds={"seed": seed},
        run={"verdict": verdict, "base_model": base_model_of(str(start.path))},
    )
