"""A prompt's preferred and rejected answers as branches behind it: P + (1 + N) * L tokens a set of N pairs,
whose 2 * N rows cost 2 * N * (P + L) in TRL's layout.

TRL's batch stays what its loss reads; beside it lie the trees (`prompts.branches`), which is what the model
reads instead: `read_prompts_once` runs them, scores the answers' tokens alone, and hands TRL its rows back.
Log-probs and gradients are those of TRL's rows.

Legend: R rows of TRL's batch (preferred of all pairs, then rejected of all pairs), S its columns, B trees,
Q columns of a tree, A tokens of the trees' answers, K labelled cells of TRL's batch.
"""

import types
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from prompts.branches import IGNORE, Branch, BranchBatch

Row = dict[str, Any]


class AnswerCollator:
    """Rows of preference sets -> TRL's batch of pairs, in their order, and the set that each pair is of.

    Args:
        collate_pairs: TRL's collator.
        shared_prompt: add the trees that `read_prompts_once` takes.
    """

    def __init__(
        self, collate_pairs: Callable[[list[Row]], dict[str, torch.Tensor]], pad_id: int, shared_prompt: bool
    ) -> None:
        self.collate_pairs, self.pad_id, self.shared_prompt = collate_pairs, pad_id, shared_prompt

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """TRL's keys; `set_of_pair` int64, ascending from 0; with `shared_prompt` those of `_trees`."""
        batch = self.collate_pairs([pair for row in rows for pair in _pairs(row)])
        counts_B = torch.tensor([len(row["rejected_ids"]) for row in rows])
        batch["set_of_pair"] = torch.repeat_interleave(counts_B)
        return {**batch, **self._trees(rows)} if self.shared_prompt else batch

    def _trees(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Model inputs [B, Q], `tree_visible` [B, Q, Q], and `answer_token_K`: which of the A tokens that the
        trees' labels name, row by row, belongs in each labelled cell of TRL's batch, row by row.
        """
        answers = [[row["chosen_ids"], *row["rejected_ids"]] for row in rows]
        batch = BranchBatch.from_branches(
            # A branch begins with a copy of the prompt's last token, whose own place is empty.
            [row["prompt_ids"][:-1] for row in rows],
            [
                [Branch(len(prompt) - 2, [prompt[-1], *ids[:-1]], ids) for ids in own]
                for prompt, own in zip((row["prompt_ids"] for row in rows), answers, strict=True)
            ],
            self.pad_id,
        )
        preferred, rejected, first = [], [], 0
        for own in answers:
            spans = []
            for ids in own:
                spans.append(range(first, first + len(ids)))
                first += len(ids)
            preferred += spans[:1] * (len(own) - 1)
            rejected += spans[1:]
        assert batch.shift_labels_BQ is not None
        return {
            "tree_ids": batch.input_ids_BQ,
            "tree_positions": batch.position_ids_BQ,
            "tree_visible": batch.visible_BQT,
            "tree_labels": batch.shift_labels_BQ,
            "answer_token_K": torch.tensor([token for span in (*preferred, *rejected) for token in span]),
        }


def _pairs(row: Row) -> list[Row]:
    """A set as rows of TRL's collator, one for each rejected answer; log-probs of a reference go along."""
    shared = {key: row[key] for key in ("prompt_ids", "chosen_ids", "ref_chosen_logps") if key in row}
    own = {key: row[key] for key in ("rejected_ids", "ref_rejected_logps") if key in row}
    return [{**shared, **dict(zip(own, values, strict=True))} for values in zip(*own.values(), strict=True)]


def read_prompts_once(model: Any) -> None:
    """Let `model`, which has TRL's fused head, take the batches of `AnswerCollator` with trees in them.

    Here, in the innermost `forward`, because TRL 1.16's loss calls policy and reference in several ways:
    through DDP or FSDP, under a disabled adapter, prepared or not.
    """
    plain = model.forward

    @wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "tree_ids" not in kwargs:
            return plain(*args, **kwargs)
        labels_BQ, answer_token_K = kwargs.pop("tree_labels"), kwargs.pop("answer_token_K")
        cells_RS = kwargs.pop("labels")[:, 1:] != IGNORE
        kwargs["input_ids"], kwargs["position_ids"] = kwargs.pop("tree_ids"), kwargs.pop("tree_positions")
        seen_BQQ, dtype = kwargs.pop("tree_visible"), self.get_input_embeddings().weight.dtype
        mask = torch.zeros(seen_BQQ.shape, dtype=dtype, device=seen_BQQ.device)
        kwargs["attention_mask"] = mask.masked_fill_(~seen_BQQ, torch.finfo(dtype).min)[:, None]
        scored_BQ = labels_BQ != IGNORE

        def answers_only(backbone: Any, arguments: Any, output: Any) -> Any:
            # TRL 1.16 scores every position where there is no Triton: of long prompts, most of a step.
            output.last_hidden_state = output.last_hidden_state[scored_BQ][None]
            return output

        hook = self.base_model.register_forward_hook(answers_only)
        try:
            output = plain(*args, **kwargs, shift_labels=labels_BQ[scored_BQ][None])
        finally:
            hook.remove()

        def in_rows(value_1A: torch.Tensor) -> torch.Tensor:
            empty_RS = value_1A.new_zeros(cells_RS.shape)
            return empty_RS.masked_scatter(cells_RS, value_1A[0, answer_token_K])

        whole = ("loss", "aux_loss", "label_mask")
        return type(output)(
            **{name: value if name in whole else in_rows(value) for name, value in output.items()}
        )

    model.forward = types.MethodType(forward, model)
