"""Turn a finished training run, or another project's checkpoint, into one self-contained model directory that
rl, serve.evaluate and serve.launch open.

A run of sft.train brings all it needs:

    python -m sft.merge --adapter out/toy/sft --output_dir out/toy/model

Peers' weights need the SIDs and the prompts they were trained with (`--sid_dir`: a build with
`quantizer: given`; `--prompt_pack`: a YAML file). A finished checkpoint (MiniOneRec's), a LoRA adapter on its
base (LC-Rec's), a delta on its base (LC-Rec's):

    python -m sft.merge --base_model MODEL --sid_dir SIDS --prompt_pack PACK.yaml --output_dir out/model
    python -m sft.merge --base_model BASE --adapter ADAPTER --sid_dir SIDS --prompt_pack PACK.yaml ...
    python -m sft.merge --base_model BASE --delta DELTA --sid_dir SIDS --prompt_pack PACK.yaml ...
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prompts.opening import MODEL_KIND
from prompts.pack import PromptPack
from prompts.template import PACK_FILE, PromptTemplate
from sft.model_card import base_model_of, write_card
from sft.publish import KEPT_HERE, check_repository, publish
from sid_builder import cli
from sid_builder.artifact import MANIFEST, check_output, open_artifact, to_json, writing
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex


@dataclass
class MergeArguments:
    """Arguments of `sft.merge`."""

    output_dir: str = field(metadata={"help": "model directory to write"})
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "output_dir of sft.train: adapters and trained rows, or full weights; with --base_model, "
            "a PEFT adapter of another project, its tokenizer beside it"
        },
    )
    base_model: str | None = field(
        default=None,
        metadata={"help": "hub name or path: a finished checkpoint, or what --adapter or --delta goes on"},
    )
    delta: str | None = field(
        default=None,
        metadata={
            "help": "hub name or path of a checkpoint of differences to --base_model, tokenizer beside"
        },
    )
    sid_dir: str | None = field(
        default=None, metadata={"help": "with --base_model: the SIDs it speaks, written by sid_builder.build"}
    )
    prompt_pack: str | None = field(
        default=None, metadata={"help": "with --base_model: the prompts it was trained on, a YAML file"}
    )
    push_to_hub: str | None = field(
        default=None,
        metadata={"help": "USER/REPO to upload the model to, without its interactions; needs a login"},
    )
    private: bool = field(
        default=False, metadata={"help": "with --push_to_hub: a repository nobody else sees"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing model directory"})

    def check(self) -> None:
        """What can be known before torch is imported."""
        if self.private and self.push_to_hub is None:
            raise InputError("private: true goes with --push_to_hub USER/REPO; give that as well")
        if self.push_to_hub is not None:
            check_repository(self.push_to_hub)
        if self.base_model is None:
            self._check_own_run()
            return
        if self.adapter is not None and self.delta is not None:
            raise InputError(f"delta: {self.delta!r} with --adapter {self.adapter!r}; give one of them")
        for name in ("sid_dir", "prompt_pack"):
            if getattr(self, name) is None:
                raise InputError(f"{name}: is missing; a checkpoint given by --base_model needs it")
        if self.adapter is not None and not (Path(self.adapter) / "adapter_config.json").is_file():
            raise InputError(
                f"adapter: {self.adapter!r} has no adapter_config.json; give a PEFT adapter's directory, or "
                "leave --base_model out for a run of sft.train"
            )

    def _check_own_run(self) -> None:
        for name in ("delta", "sid_dir", "prompt_pack"):
            if getattr(self, name) is not None:
                raise InputError(f"{name}: {getattr(self, name)!r} goes with --base_model; give that as well")
        if self.adapter is None:
            raise InputError("adapter: is missing; give a run of sft.train, or --base_model")
        path = Path(self.adapter)
        if (path / "adapter_config.json").is_file() and not (path / MANIFEST).is_file():
            raise InputError(
                f"adapter: {self.adapter!r} is no run of sft.train; for an adapter of another project give "
                "--base_model, --sid_dir and --prompt_pack"
            )


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(MergeArguments, argv, description=__doc__)
    check_output(Path(args.output_dir), args.overwrite)
    if args.base_model is None:
        merge_run(args)
    else:
        merge_peer(args)
    print(f"sft.merge: wrote {args.output_dir}")
    if args.push_to_hub is not None:
        address = publish(args.output_dir, args.push_to_hub, args.private)
        print(f"sft.merge: uploaded to {address}, without {KEPT_HERE}")


def merge_run(args: MergeArguments) -> None:
    """A run of `sft.train`."""
    assert args.adapter is not None
    run = open_artifact(args.adapter, "sft")
    trained, output_dir = run.path / "trained", Path(args.output_dir)
    inputs, seeds = {"sft": run.path}, run.manifest["seeds"]
    if run.summary["training"] == "full":
        with writing(output_dir, MODEL_KIND, 1, run.config, inputs, seeds, args.overwrite) as artifact:
            shutil.copytree(trained, artifact.path, dirs_exist_ok=True)
            (artifact.path / "training_args.bin").unlink(missing_ok=True)
            artifact.summary.update(run.summary)
            write_card(artifact.path, output_dir.name, run.config, run.summary)
        return

    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from sft.model_directory import write_model_directory

    base = open_artifact(run.path / "base", MODEL_KIND).path
    # Merged in fp32 whatever the base is kept in, and stored in the base's own dtype.
    kept = AutoConfig.from_pretrained(base).dtype
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    model = PeftModel.from_pretrained(model, trained).merge_and_unload().to(kept)
    write_model_directory(
        output_dir,
        model,
        AutoTokenizer.from_pretrained(base),
        PromptPack.load(base / PACK_FILE),
        SidIndex.load(base / "sid_index"),
        base / "interactions",
        config=run.config,
        inputs=inputs,
        seeds=seeds,
        overwrite=args.overwrite,
        run=run.summary,
    )


def merge_peer(args: MergeArguments) -> None:
    """Another project's checkpoint; tokenizer, index and prompts must agree before weights are read."""
    assert args.base_model is not None and args.sid_dir is not None and args.prompt_pack is not None
    sids = open_artifact(args.sid_dir, "sids")
    index, pack = SidIndex.load(sids.path / "sid_index"), PromptPack.load(args.prompt_pack)

    from sft import peer_checkpoints
    from sft.model_directory import write_model_directory
    from sft.vocabulary import check_rows

    name = "adapter" if args.adapter else "delta" if args.delta else "base_model"
    source, save_weights = getattr(args, name), None
    tokenizer = peer_checkpoints.open_tokenizer(source, name)
    template = PromptTemplate(pack, tokenizer, index)
    if args.delta is not None:
        base = peer_checkpoints.local_directory(args.base_model, "base_model")
        delta = peer_checkpoints.local_directory(args.delta, "delta")
        model = peer_checkpoints.shape_of(delta, "delta")
        save_weights = partial(peer_checkpoints.write_delta_sum, base, delta, model.config)
    elif args.adapter is not None:
        model = peer_checkpoints.merged_adapter(args.base_model, args.adapter)
    else:
        model = peer_checkpoints.open_model(args.base_model)
    check_rows(
        model,
        int(template.vocabulary.all_ids.max()),
        f"{name}: {source}",
        "give the checkpoint whose embeddings were extended for them",
    )
    write_model_directory(
        args.output_dir,
        model,
        tokenizer,
        pack,
        index,
        sids.path / "interactions",
        config={"merge": to_json(args)},
        inputs={"sids": sids.path, "base_model": args.base_model, name: source},
        overwrite=args.overwrite,
        save_weights=save_weights,
        run={"base_model": base_model_of(args.base_model)},
    )


if __name__ == "__main__":
    cli.run(main)
