"""Ranking a fixed subset of valid while a model trains."""

from typing import Any

from transformers import TrainerCallback

from serve.decoding.recommender import Recommender
from serve.evaluation.model_ranking import evaluate_model, sample_cases
from sid_builder.interactions import Interactions


class ValidRanking(TrainerCallback):
    """HR@10 and NDCG@10 of a fixed subset of valid, logged at every epoch's end."""

    def __init__(
        self,
        trainer: Any,
        recommender: Recommender,
        interactions: Interactions,
        num_cases: int,
        seed: int,
    ) -> None:
        histories = interactions.histories("valid")
        self.trainer, self.recommender = trainer, recommender
        self.histories = sample_cases(histories, num_cases, seed)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.recommender.model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        metrics = evaluate_model(self.recommender, self.histories, progress=False)
        self.trainer.log({f"valid_{name}": metrics[name] for name in ("hr@10", "ndcg@10")})
