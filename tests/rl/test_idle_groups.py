"""Groups without advantage: counted, left out of the step exactly, and told of when nothing else is left."""

import numpy as np
import pytest
import torch
from trl import GRPOTrainer

from rl import train_grpo
from rl.idle_groups import _IdleEpoch
from serve.decoding.ranking import ItemFilter
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from tests.rl.builders import grpo_flags, grpo_trainer, rows_with_hits

G = 8
SIZES = ["--steps_per_generation", "2", "--beta", "0.05", "--rewards", '{"rule": 1.0}']


def rollout(idle_groups: str, **options) -> list[str]:
    pairs = ", ".join(f'"{name}": {value}' for name, value in options.items())
    return ["--rollout", f'{{"idle_groups": "{idle_groups}"{", " + pairs if pairs else ""}}}']


@pytest.fixture(scope="module", params=["grpo", "dr_grpo", "bnpo", "dapo"])
def trainer_and_policy(model_dir, tmp_path_factory, request):
    flags = [*SIZES, *rollout("skip"), "--loss_type", request.param]
    trainer, policy = grpo_trainer(model_dir, tmp_path_factory.mktemp("idle"), *flags)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    return trainer, policy


def gradient(trainer, batches, compute_loss) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    for batch in batches:
        compute_loss(trainer, trainer.model, batch).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def test_a_step_is_that_of_the_other_groups_alone(trainer_and_policy):
    """Four groups of which one is idle; the reference is TRL's loss of a batch that never held it."""
    trainer, policy = trainer_and_policy
    trainer._metrics["train"].clear()
    scored = trainer._generate_and_score_completions(rows_with_hits(trainer, policy))
    assert trainer._metrics["train"]["idle_groups"] == [0.25]
    assert trainer._metrics["train"]["groups_with_hit"] == [0.75]
    assert scored["live"].view(4, G).all(dim=1).tolist() == [True, True, True, False]
    live = {
        key: value[scored["live"]] if value.dim() else value for key, value in scored.items() if key != "live"
    }
    batches = trainer.micro_batches(dict(scored))
    assert [len(batch["advantages"]) for batch in batches] == [2 * G, G]  # the idle rows are not computed
    ours = gradient(trainer, batches, type(trainer)._compute_loss)
    metrics = {name: np.mean(trainer._metrics["train"].pop(name)) for name in ("kl", "entropy")}
    expected = gradient(trainer, [live], GRPOTrainer._compute_loss)
    for name, mean in metrics.items():
        assert mean == pytest.approx(trainer._metrics["train"][name][0], rel=1e-4, abs=1e-6)
    # TRL takes the one batch for one of two to be accumulated, but for dapo counts its tokens as they are.
    scale = 1 if trainer.loss_type == "dapo" else 2
    for name, grad in ours.items():
        torch.testing.assert_close(grad, scale * expected[name], atol=1e-6, rtol=1e-4, msg=name)
    assert max(grad.abs().max() for grad in ours.values()) > 0


def test_an_idle_batch_changes_nothing(trainer_and_policy):
    trainer, policy = trainer_and_policy
    trainer.rollout_rows = rows = next(iter(trainer.get_train_dataloader()))
    found = trainer.rollout_func([row["prompt"] for row in rows], trainer)["completion_ids"]
    missed = next(item for item in range(60) if policy.template.sid_ids[item] not in found)
    scored = trainer._generate_and_score_completions([{**row, "target_item": missed} for row in rows])
    assert not scored["live"].any()
    batches = trainer.micro_batches(dict(scored))
    assert [len(batch["advantages"]) for batch in batches] == [G, G]
    trainer._metrics["train"].clear()
    for grad in gradient(trainer, batches, type(trainer)._compute_loss).values():
        assert not grad.any()
    assert np.isnan(trainer._metrics["train"]["entropy"]).all()  # no row to take a mean of


def test_micro_batches_that_cut_groups_keep_all_rows_that_count(trainer_and_policy):
    """Parts of 12 rows cut groups of 8 after 4: units of 4 rows."""
    trainer, _ = trainer_and_policy
    numbers = torch.arange(24)
    scored = {"live": (numbers // G != 1), "advantages": numbers.float(), "scalar": torch.tensor(3.0)}
    trainer._idle_B = np.array([False, True, False])
    batches = trainer.micro_batches(scored)
    assert [batch["advantages"].tolist() for batch in batches] == [[*range(8)], [*range(16, 24)]]
    assert [batch["loss_weight"] for batch in batches] == [1.0, 1.0]
    assert all(batch["scalar"] == 3 for batch in batches)


def test_processes_make_parts_of_one_size(trainer_and_policy, monkeypatch):
    """This one has one group to learn from, another has three: an idle one takes the second part."""
    trainer, _ = trainer_and_policy
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    trainer._idle_B = np.array([True, True, False, True, False, False, False, True])
    numbers = torch.arange(32)
    scored = {"live": numbers // G == 2, "advantages": numbers.float()}
    batches = trainer.micro_batches(scored)
    assert [batch["advantages"].tolist()[::G] for batch in batches] == [[16.0, 0.0], [8.0]]
    # Rows of all parts of all processes over those that count: 2 parts x 2 processes x rows / 32.
    assert [batch["loss_weight"] for batch in batches] == [2.0, 1.0]
    # Three groups count in the first parts of both, one in the second.
    assert [batch["metric_weight"] for batch in batches] == [1.5, 0.5]


@pytest.mark.parametrize("idle_groups", ["keep", "skip", "resample"])
def test_shares_are_logged(model_dir, tmp_path, idle_groups):
    flags = [
        *SIZES,
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        "--save_strategy",
        "no",
        *rollout(idle_groups),
    ]
    trainer, _ = grpo_trainer(model_dir, tmp_path, *flags)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "idle_groups" in row]
    assert len(logged) == 2
    for row in logged:
        # Groups of four, under `rule`: those without a hit are idle.
        assert row["idle_groups"] * 4 == round(row["idle_groups"] * 4)
        if idle_groups == "resample":
            assert row["idle_groups_left"] <= row["idle_groups"]
            assert row["groups_with_hit"] == 1 - row["idle_groups_left"]
        else:
            assert row["groups_with_hit"] == 1 - row["idle_groups"] == 1 - row["frac_reward_zero_std"]
    assert any(row["idle_groups"] > 0 for row in logged)


def test_a_run_without_idle_groups_is_the_same_under_skip(model_dir, tmp_path):
    """With the truth in every group; all options of the rollout on, through the command."""
    flags = [*SIZES, "--max_steps", "2", "--learning_rate", "1e-3", "--valid_cases", "0"]
    flags += ["--save_strategy", "no"]
    options = {"mode": '"mixed"', "temperature": 1.3, "oversample": 1.5, "add_ground_truth": "true"}
    weights = []
    for kind in ("keep", "skip", "resample"):
        train_grpo.main(grpo_flags(model_dir, tmp_path / kind, *flags, *rollout(kind, **options)))
        weights.append(Recommender.load(tmp_path / kind / "model", device="cpu").model.state_dict())
    for name, weight in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], weight, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("reward", "added", "cause"),
    [
        ("tests.rl.test_idle_groups:nothing", "true", "8 held their target, but rewards do not tell"),
        ("rule", "false", "none held its target: raise num_generations"),
    ],
)
def test_an_epoch_of_idle_groups_is_told_with_its_cause(model_dir, tmp_path, reward, added, cause):
    flags = ["--rewards", f'{{"{reward}": 1.0}}', "--max_prompts", "8", "--num_train_epochs", "1"]
    flags += ["--save_strategy", "no", *rollout("keep", add_ground_truth=added)]
    trainer, policy = grpo_trainer(model_dir, tmp_path, *flags)
    missed = missed_by_beams(policy, trainer.train_dataset)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"target_item": missed})
    with pytest.warns(UserWarning, match=f"an epoch of 8 groups taught nothing.*{cause}"):
        trainer.train()


def nothing(completions):
    return np.zeros(len(completions))


def missed_by_beams(policy, rows):
    """An item that is in no row's history nor beam."""
    prompts = [policy.template.seqrec_prompt(row["history"]) for row in rows]
    filters = [ItemFilter(exclude=np.array(row["history"])) for row in rows]
    listed = {item for row in rows for item in row["history"]}
    for ranking in decode(policy.model, prompts, policy.trie, G, filters):
        listed |= set(ranking.items_K.tolist())
    return min(set(range(60)) - listed)


def test_an_epoch_that_was_cut_short_or_has_taught_something_is_not(recwarn):
    class Trainer:
        epoch_groups = None

    class State:
        is_world_process_zero, epoch = True, 1.0

    trainer = Trainer()
    for idle, epoch in ((7, 1.0), (8, 0.4)):
        trainer.epoch_groups, State.epoch = {"groups": 8, "idle": idle, "hit": 0}, epoch
        _IdleEpoch(trainer).on_epoch_end(None, State, None)
        assert trainer.epoch_groups == {"groups": 0, "idle": 0, "hit": 0}
    assert not recwarn.list
