"""Groups whose completions all earn the same: they have no advantage, and teach nothing.

They are counted, and under `rollout.idle_groups: skip` or `resample` (whose rollout has tried other prompts
before) left out of the update: their rows are not even computed, and the loss, its KL term included, is the
mean over the other groups of the generation batch, whichever process and micro-batch they are in.

Legend: N rows, B groups of a process, F reward functions, P processes, U units of rows that stay together.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from rl.rollout_groups import are_idle

# Their losses divide by the tokens of the generation batch, which are counted anew; the others by rows.
_PER_TOKEN = ("cispo", "dapo", "vespo")
# Of TRL's metrics those that are means over the tokens of a micro-batch on all processes.
_MEANS = (
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "cispo_clip_ratio",
    "vespo/phi_seq_mean",
)


class IdleGroups(GRPOTrainer):
    """What `GroupedGRPOTrainer` does about them; metrics `idle_groups` and `groups_with_hit` are shares.

    `idle_groups` is of the groups that a rollout began with; what is left idle after other prompts were tried
    is `idle_groups_left`.
    """

    def __init__(self, *, idle_groups: str = "keep", **kwargs: Any) -> None:
        self.idle_groups = idle_groups
        super().__init__(**kwargs)
        self._idle_B = np.empty(0, dtype=bool)
        self.epoch_groups = {"groups": 0, "idle": 0, "hit": 0}
        self.add_callback(_IdleEpoch(self))

    def log_share(self, name: str, share: float) -> None:
        """A metric of this rollout: the mean over processes, which have equally many groups each."""
        self._log_metric(name, share)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list
    ) -> torch.Tensor:
        prompts[:] = [row["prompt"] for row in inputs]  # the rollout may have replaced rows
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        size, weights_F = self.num_generations, self.reward_weights.cpu().numpy()
        self._idle_B = are_idle(rewards_NF.cpu().numpy(), weights_F, size, self.multi_objective_aggregation)
        name = "idle_groups_left" if self.idle_groups == "resample" else "idle_groups"
        self._metrics["train"][name].append(float(self._idle_B.mean()))
        hits = np.reshape([row["hit"] for row in inputs], (-1, size)).any(axis=1)
        self.log_share("groups_with_hit", float(hits.mean()))
        return rewards_NF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.model.training, "evaluation ranks, and draws no completions (rl.ranked_policy)"
        scored = super()._generate_and_score_completions(inputs)
        groups = len(self._idle_B)
        self.epoch_groups["groups"] += groups
        self.epoch_groups["idle"] += int(self._idle_B.sum())
        self.epoch_groups["hit"] += round(self._metrics["train"]["groups_with_hit"][-1] * groups)
        if self.idle_groups != "keep":
            own_B = self._idle_B.reshape(self.accelerator.num_processes, -1)[self.accelerator.process_index]
            live_N = torch.from_numpy(~own_B).repeat_interleave(self.num_generations)
            scored["live"] = live_N.to(self.accelerator.device)
            scored["completion_mask"] = scored["completion_mask"] * scored["live"][:, None]
            scored["num_items_in_batch"] = self.accelerator.gather(scored["completion_mask"].sum()).sum()
        return scored

    def micro_batches(self, scored: dict[str, Any]) -> list[dict[str, Any]]:
        """The generation batch in `steps_per_generation` parts, without idle groups if they are left out.

        A group stays whole where micro-batches hold whole groups. All processes' parts are equally large, so
        a process with fewer groups to learn from fills them with idle ones, whose rows are masked: as every
        part needs a row.
        """
        parts = self.args.steps_per_generation
        if "live" not in scored:
            return split_tensor_dict(scored, parts)
        live_N = scored.pop("live")
        unit = math.gcd(len(live_N) // parts, self.num_generations)
        order_U = torch.argsort(live_N[::unit].int(), descending=True, stable=True)
        live_PB = ~self._idle_B.reshape(self.accelerator.num_processes, -1)
        live_P = live_PB.sum(axis=1) * (self.num_generations // unit)
        kept_U = order_U[: max(live_P.max(), parts)]
        batches, first = [], 0
        for part_U in torch.tensor_split(kept_U, parts):
            rows = (part_U[:, None] * unit + torch.arange(unit, device=part_U.device)).flatten()
            batch = {
                key: value[rows] if isinstance(value, torch.Tensor) and value.dim() else value
                for key, value in scored.items()
            }
            # So weighted, the mean over parts is one over all rows that count: of a loss, which divides by
            # all rows of a part, and of a metric, which divides by those that count.
            counted = (live_P - first).clip(0, len(part_U)).sum()
            first += len(part_U)
            share = parts / max(live_P.sum(), 1)
            batch["loss_weight"] = float(len(part_U) * len(live_P) * share)
            batch["metric_weight"] = float(counted * share) if live_P.any() else math.nan
            batches.append(batch)
        return batches

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if "loss_weight" not in inputs:
            return loss
        metrics = self._metrics["train"]
        for name in _MEANS:
            if metrics.get(name):
                metrics[name][-1] *= inputs["metric_weight"]  # TRL's log leaves NaN out
        return loss if self.loss_type in _PER_TOKEN else loss * inputs["loss_weight"]


class _IdleEpoch(TrainerCallback):
    """Warns when a whole epoch has taught nothing, and says why."""

    def __init__(self, trainer: IdleGroups) -> None:
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch, self.trainer.epoch_groups = self.trainer.epoch_groups, {"groups": 0, "idle": 0, "hit": 0}
        cut_short = abs(state.epoch - round(state.epoch)) > 1e-6
        if cut_short or epoch["idle"] < epoch["groups"] or not state.is_world_process_zero:
            return
        cause = (
            f"{epoch['hit']:,} held their target, but rewards do not tell the completions of a group apart: "
            "choose others (ranking), or draw more widely (rollout.temperature)"
            if epoch["hit"]
            else "none held its target: raise num_generations or rollout.oversample, set "
            "rollout.add_ground_truth, or train the model for longer before"
        )
        warnings.warn(
            f"rollout: an epoch of {epoch['groups']:,} groups taught nothing, as all completions of each "
            f"earned the same; {cause}",
            stacklevel=1,
        )
