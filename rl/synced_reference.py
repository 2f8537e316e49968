"""A reference that moves after the policy (TRL's `sync_ref_model`), in checkpoints as well.

TRL 1.16 saves the policy alone: a resumed run would measure its KL from where the policy began.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sid_builder.errors import InputError

REFERENCE_FILE = "reference.safetensors"


class SyncedReference(Trainer):
    """Mixed into a trainer of TRL's with a `ref_model`: saves it beside the policy, and loads it where the
    optimizer is loaded.
    """

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.sync_ref_model and self.args.should_save:
            checkpoint = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_model(self.accelerator.unwrap_model(self.ref_model), str(checkpoint / REFERENCE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if not self.args.sync_ref_model or checkpoint is None:
            return
        path = Path(checkpoint) / REFERENCE_FILE
        if not path.is_file():
            raise InputError(
                f"resume_from_checkpoint: {checkpoint} has no {REFERENCE_FILE}, as its run did not move the "
                "reference; leave sync_ref_model out as well"
            )
        reference = self.accelerator.unwrap_model(self.ref_model)
        load_model(reference, str(path), device=str(self.accelerator.device))
