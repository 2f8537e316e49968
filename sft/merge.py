"""Turn a finished training run into one self-contained model directory that rl, serve.evaluate and
serve.launch open.

python -m sft.merge --adapter out/toy/sft --output_dir out/toy/model
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prompts.pack import PromptPack
from prompts.template import PACK_FILE
from sid_builder import cli
from sid_builder.artifact import check_output, open_artifact, writing
from sid_builder.sid_index import SidIndex


@dataclass
class MergeArguments:
    """Arguments of `sft.merge`."""

    adapter: str = field(
        metadata={"help": "output_dir of sft.train: adapters and trained rows, or full weights"}
    )
    output_dir: str = field(metadata={"help": "model directory to write"})
    overwrite: bool = field(default=False, metadata={"help": "replace an existing model directory"})


def main(argv: Sequence[str]) -> None:
    (args,) = cli.parse(MergeArguments, argv, description=__doc__)
    run = open_artifact(args.adapter, "sft")
    check_output(Path(args.output_dir), args.overwrite)
    trained, output_dir = run.path / "trained", Path(args.output_dir)
    inputs, seeds = {"sft": run.path}, run.manifest["seeds"]
    if run.summary["training"] == "full":
        with writing(output_dir, "model", 1, run.config, inputs, seeds, args.overwrite) as artifact:
            shutil.copytree(trained, artifact.path, dirs_exist_ok=True)
            for leftover in ("training_args.bin", "README.md"):
                (artifact.path / leftover).unlink(missing_ok=True)
            artifact.summary.update(run.summary)
        print(f"sft.merge: wrote {output_dir}")
        return

    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from sft.model_directory import write_model_directory

    base = open_artifact(run.path / "base", "model").path
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
    )
    print(f"sft.merge: wrote {output_dir}")


if __name__ == "__main__":
    cli.run(main)
