"""Runs of GRPO and DPO from flags to a sealed directory: the best step, the start as a candidate, resuming,
QLoRA, what never looks finished before it is, and what is refused.
"""

import gc
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl import train_dpo, train_grpo
from rl.acceptance import Acceptance
from rl.launch import check_launch
from serve.decoding.recommender import Recommender
from serve.evaluation.metrics import metrics_of_ranks
from serve.evaluation.model_ranking import rank_targets
from sft.model_directory import write_model_directory
from sft.valid_ranking import FIGURES
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from tests.builders import make_index
from tests.rl.builders import grpo_flags, make_model_dir
from tests.rl.dpo_cases import dpo_flags

MAINS = {"grpo": (train_grpo.main, grpo_flags), "dpo": (train_dpo.main, dpo_flags)}
DPO_SLOWLY = ["grpo", pytest.param("dpo", marks=pytest.mark.slow)]
EVERY_STEP = "--max_steps 3 --logging_steps 1 --save_strategy steps --save_steps 1 --learning_rate 1e-3"


def run(kind, model_dir, output, flags="", *more):
    """The command, three steps each of which is saved and ranked; returns what was logged."""
    main, all_flags = MAINS[kind]
    main(all_flags(model_dir, output, *EVERY_STEP.split(), *flags.split(), *more))
    return json.loads((output / "log_history.json").read_text())


def column(history, name):
    return {row["step"]: row[name] for row in history if row.get(name) is not None}


def weights(directory):
    return load_file(directory / "model.safetensors")


def same_weights(first, second):
    first, second = weights(first), weights(second)
    shared = set(first) & set(second)  # of tied matrices each file has the one or the other
    return len(shared) > 20 and all(torch.equal(first[name], second[name]) for name in shared)


def script(monkeypatch, *values):
    """Let the start and then the evaluations find these NDCG@10."""
    left = list(values)
    monkeypatch.setattr(Acceptance, "figures", lambda self, model: dict.fromkeys(FIGURES, left.pop(0)))


@pytest.mark.parametrize("kind", DPO_SLOWLY)
def test_ranking_leaves_the_training_as_it_was(model_dir, tmp_path, kind):
    """Losses and weights are those of a run that ranks nothing; figures are those of the model."""
    keep = "--save_total_limit 9 --load_best_model_at_end false"
    without = run(kind, model_dir, tmp_path / "without", f"{keep} --valid_cases 0")
    ranked = run(kind, model_dir, tmp_path / "with", keep)
    assert column(ranked, "eval_ndcg@10").keys() == {0, 1, 2, 3} and not column(without, "eval_ndcg@10")
    assert column(ranked, "loss") == column(without, "loss") and len(column(ranked, "loss")) == 3
    assert same_weights(tmp_path / "with" / "model", tmp_path / "without" / "model")
    assert same_weights(tmp_path / "with" / "model", tmp_path / "with" / "checkpoint-3")
    policy = Recommender.load(tmp_path / "with" / "model", device="cpu")
    acceptance = Acceptance.on_valid(policy, 20, 50, seed=42, chooses=False)
    expected = metrics_of_ranks(rank_targets(policy, acceptance.choosing, 50, progress=False).item_rank_C)
    for name in ("ndcg@10", "hr@10", "hr@50"):
        assert column(ranked, f"eval_{name}")[3] == pytest.approx(expected[name], abs=1e-9)
    assert not any(name.startswith(("eval_loss", "eval_reward")) for row in ranked for name in row)


def test_the_best_step_is_the_result(model_dir, tmp_path, monkeypatch, capsys):
    script(monkeypatch, 0.2, 0.1, 0.5, 0.3)
    out = tmp_path / "run"
    history = run("grpo", model_dir, out, "--save_total_limit 3")
    assert column(history, "eval_ndcg@10") == {0: 0.2, 1: 0.1, 2: 0.5, 3: 0.3}
    assert same_weights(out / "model", out / "checkpoint-2")
    assert not same_weights(out / "model", out / "checkpoint-3")
    told = capsys.readouterr().out
    assert "valid NDCG@10 0.2000 at the start, at best 0.5000 at step 2 of 3: the model holds step 2" in told
    assert "KL to the start, nats" in told
    step = {"metric": "ndcg@10", "start": 0.2, "best": 0.5, "beats_start": True}
    step |= {"best_step": 2, "kept_step": 2, "last_step": 3}
    summary = open_artifact(out, "grpo").summary
    assert summary["valid"] == step == json.loads((out / "acceptance.json").read_text())["step"]
    assert summary["steps"] == 3
    for name in ("curves.png", "acceptance.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    open_artifact(out, "grpo").verify_hashes()
    open_artifact(out / "model", "model").verify_hashes()


@pytest.mark.parametrize("keep_start", [False, True])
def test_the_start_is_a_candidate(model_dir, tmp_path, monkeypatch, capsys, keep_start):
    script(monkeypatch, 0.6, 0.1, 0.5, 0.3)
    out = tmp_path / "run"
    run("dpo", model_dir, out, f"--save_total_limit 3 --keep_start {keep_start}")
    told = capsys.readouterr().out
    assert "no step beat the start: valid NDCG@10 0.6000 at the start, at best 0.5000 at step 2 of 3" in told
    assert same_weights(out / "model", model_dir) is keep_start
    assert same_weights(out / "model", out / "checkpoint-2") is not keep_start
    differences = json.loads((out / "acceptance.json").read_text())
    assert (differences["kl"]["mean"] == 0) is keep_start
    assert open_artifact(out, "dpo").summary["valid"]["kept_step"] == (0 if keep_start else 2)


def test_patience_and_the_last_step(model_dir, tmp_path, monkeypatch):
    script(monkeypatch, 0.1, 0.5, 0.4, 0.3)
    run("grpo", model_dir, tmp_path / "run", "--max_steps 9 --patience 2")
    step = open_artifact(tmp_path / "run", "grpo").summary["valid"]
    assert (step["last_step"], step["kept_step"]) == (3, 1)
    script(monkeypatch, 0.1, 0.2, 0.3)
    history = run("grpo", model_dir, tmp_path / "odd", "--save_steps 2")
    assert column(history, "eval_ndcg@10").keys() == {0, 2, 3}, "the last step is ranked wherever it falls"
    assert same_weights(tmp_path / "odd" / "model", tmp_path / "odd" / "checkpoint-3")


@pytest.mark.parametrize("kind", DPO_SLOWLY)
def test_quantised_lora_leaves_whole_weights(model_dir, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "run"
    lora = '{"r": 4, "alpha": 8, "dropout": 0.0, "use_rslora": true}'
    more = ["--lora", lora, *(("--rollout", '{"add_ground_truth": true}') if kind == "grpo" else ())]
    flags = "--training lora --load_in_4bit true --load_best_model_at_end false --save_total_limit 3"
    run(kind, model_dir, out, flags, *more)
    adapter = json.loads((out / "checkpoint-3" / "adapter_config.json").read_text())
    assert adapter["use_rslora"] is True and adapter["r"] == 4
    before, after = weights(model_dir), weights(out / "model")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved and all("proj" in name for name in moved)
    for name in moved:  # the start's own weights and the adapter, without what nf4 rounds off
        assert before[name].dtype == after[name].dtype
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-6) <= 4
    # The verdict is about what is written, against what is on disk.
    found = json.loads((out / "acceptance.json").read_text())
    for when, path in (("before", model_dir), ("after", out / "model")):
        policy = Recommender.load(path, device="cpu")
        judging = Acceptance.on_valid(policy, 20, 50, seed=42, chooses=False).judging
        ranks = rank_targets(policy, judging, 50, progress=False).item_rank_C
        assert found[when]["ndcg@10"] == pytest.approx(metrics_of_ranks(ranks)["ndcg@10"], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAINS)
def test_gradient_checkpointing_changes_nothing(model_dir, tmp_path, kind):
    losses = []
    for value in ("false", "true"):
        flags = f"--valid_cases 0 --save_strategy no --gradient_checkpointing {value}"
        losses.append(column(run(kind, model_dir, tmp_path / value, flags), "loss"))
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-7)


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(model_dir, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = "--save_total_limit 9 --save_steps 1"
    history = run("grpo", model_dir, whole, flags)
    shutil.copytree(whole / "checkpoint-1", cut / "checkpoint-1")
    resume = f"{flags} --resume_from_checkpoint true"
    with pytest.raises(InputError, match="there is no settings.json beside"):
        run("grpo", model_dir, cut, resume)
    shutil.copy(whole / "settings.json", cut)
    other = make_model_dir(tmp_path / "other", seed=5)
    for given, message in (
        (f"{resume} --learning_rate 1e-4", "learning_rate: 0.0001, but the run of .* was begun with 0.001"),
        (f"{resume} --valid_cases 30", "valid_cases: 30, but the run of"),
        (f"{resume} --beta 0.5", "beta: 0.5, but the run of"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            run("grpo", model_dir, cut, given)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="rewards: .*ranking.*, but the run of .* was begun with"):
        run("grpo", model_dir, cut, resume, "--rewards", '{"ranking": 1.0}')
    with pytest.raises(InputError, match="model_name_or_path: is not the model that the run"):
        run("grpo", other, cut, resume)
    assert {path.name for path in cut.iterdir()} == {"checkpoint-1", "settings.json"}

    # Elsewhere, from a copy of the model, and logging more: the same run.
    copied = shutil.copytree(model_dir, tmp_path / "copied")
    resumed = run("grpo", copied, cut, f"{resume} --save_total_limit 5")
    for name in ("loss", "reward", "kl", "eval_ndcg@10", "eval_hr@50", "eval_coverage@10"):
        assert column(resumed, name) == column(history, name) and len(column(history, name)) >= 3
    assert same_weights(cut / "model", whole / "model")
    verdicts = [json.loads((path / "acceptance.json").read_text()) for path in (whole, cut)]
    assert verdicts[0] == verdicts[1]


def test_a_run_does_not_look_finished_before_it_is(model_dir, tmp_path, monkeypatch):
    out, trainer = tmp_path / "run", "transformers.Trainer.train"
    run("dpo", model_dir, out, "--save_total_limit 9")

    class Killed(Exception):
        pass

    def killed(self, *args, **kwargs):
        found = {path.name for path in out.iterdir()} - {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
        assert found <= {"settings.json", "log_history.json", "curves.png", "README.md"}
        raise Killed

    monkeypatch.setattr(trainer, killed)
    with pytest.raises(Killed):
        run("dpo", model_dir, out, "--save_total_limit 9 --resume_from_checkpoint true")
    with pytest.raises(InputError, match="has no manifest.json, so it is incomplete"):
        open_artifact(out, "dpo")
    # Killed before its first checkpoint: known as ours by its settings alone.
    with pytest.raises(Killed):
        run("dpo", model_dir, out, "--overwrite true")
    assert {path.name for path in out.iterdir()} == {"settings.json"}
    monkeypatch.undo()
    with pytest.raises(InputError, match="is not empty"):
        run("dpo", model_dir, out)

    def fails(*args, **kwargs):
        raise Killed

    monkeypatch.setattr("rl.run.seal", fails)
    with pytest.raises(Killed):
        run("dpo", model_dir, out, "--overwrite true")
    with pytest.raises(InputError, match="has no manifest.json, so it is incomplete"):
        open_artifact(out, "dpo")


def rewritten(model_dir, path, index=None, interactions=None):
    """The same weights and tokenizer, with another index or without interactions."""
    model = Recommender.load(model_dir, device="cpu")
    parts = (model.model, model.tokenizer, model.template.pack, index or model.index, interactions)
    write_model_directory(path, *parts)
    return path


@pytest.mark.parametrize("kind", MAINS)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--load_in_4bit true", "load_in_4bit: quantised weights cannot be trained in full"),
        ("--patience -1", "patience: -1; give 0"),
        ("--eval_num_beams 20", "eval_num_beams: 20; HR@50 needs at least 50"),
        ("--valid_cases 0 --patience 2", "patience: 2 has no valid cases to rank"),
        ("--valid_cases 0 --eval_strategy epoch", "eval_strategy: epoch has no valid cases"),
        ("--valid_cases 0 --keep_start true", "keep_start: true takes a best step to compare with"),
        ("--save_strategy no --keep_start true", "keep_start: true takes a best step to compare with"),
        ("--metric_for_best_model eval_loss", "metric_for_best_model: 'eval_loss' is not measured in RL"),
        ("--metric_for_best_model bleu", "metric_for_best_model: 'bleu' is not measured"),
        ("--bf16 true", "bf16: true needs a GPU"),
        ("--report_to wandb", "report_to: 'wandb' is not installed"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size"),
    ],
)
def test_flags_that_are_refused_leave_nothing(model_dir, tmp_path, kind, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        run(kind, model_dir, tmp_path / "out", flags)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", MAINS)
def test_a_start_that_cannot_be_trained(model_dir, tmp_path, kind, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="carries no interactions/"):
        run(kind, rewritten(model_dir, tmp_path / "published"), out)
    codes = np.array([(a, b, c) for a in range(8) for b in range(3) for c in range(3)])
    other = make_index(codes, (8, 8, 8))  # has codes that no token spells
    mixed = rewritten(model_dir, tmp_path / "mixed", other, model_dir / "interactions")
    with pytest.raises(InputError, match="<a_6>") as caught:
        run(kind, mixed, out)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("sft.arguments.find_spec", lambda name: None)
    with pytest.raises(InputError, match="load_in_4bit: bitsandbytes is not installed"):
        run(kind, model_dir, out, "--training lora --load_in_4bit true")
    assert not out.exists()


def test_launches_that_are_refused(model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for kind in MAINS:
        with pytest.raises(InputError, match="which fsdp1 shares out; launch with ddp.yaml"):
            run(kind, model_dir, tmp_path / "out")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    with pytest.raises(InputError, match="accelerate does not apply fsdp2 on CPU"):
        run("dpo", model_dir, tmp_path / "out")
    monkeypatch.setattr("rl.launch.check_machine", lambda args: None)
    with pytest.raises(InputError, match="load_in_4bit: weights in nf4 are not gathered"):
        check_launch(SimpleNamespace(load_in_4bit=True), None)
    check_launch(SimpleNamespace(load_in_4bit=False), SimpleNamespace(sync_ref_model=False))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_reference_makes_room_for_what_judges(model_dir, tmp_path, monkeypatch):
    start, alive, measure = shutil.copytree(model_dir, tmp_path / "model"), {}, Acceptance.measure

    def watched(self, when, model):
        gc.collect()
        of_run = [item for item in gc.get_objects() if type(item).__name__ == "Qwen3ForCausalLM"]
        alive[when] = sum(item.config.name_or_path == str(start) for item in of_run)
        measure(self, when, model)

    monkeypatch.setattr(Acceptance, "measure", watched)
    run("grpo", start, tmp_path / "run", "--beta 0.1")
    assert alive == {"before": 2, "after": 1}
