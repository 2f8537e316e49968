"""TRL's DPOTrainer over rows that are token ids already. One override."""

from typing import Any

from trl import DPOTrainer

from sid_builder.errors import InputError

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class TokenDPOTrainer(DPOTrainer):
    """`train_dataset` has `prompt_ids`, `chosen_ids`, `rejected_ids`, and nothing is tokenised again.

    TRL 1.16 would render messages with the chat template, which puts a newline behind an answer's end-of-turn
    token (Qwen) or a `<think>` block before it (Qwen3): not the completion that SFT taught and decoding
    scores.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # The columns TRL's own _prepare_dataset ends with; its collator and loss take over from here.
        missing = [column for column in COLUMNS if column not in dataset.column_names]
        if missing:
            raise InputError(
                f"{dataset_name}_dataset: has no column {missing[0]!r}; build it with rl.preferences"
            )
        longest = max(
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in dataset
        )
        if args.max_length is not None and longest > args.max_length:
            raise InputError(
                f"max_length: {args.max_length} cuts answers off (longest pair: {longest} tokens); raise it"
            )
        return dataset
