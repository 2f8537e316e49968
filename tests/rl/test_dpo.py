"""DPO as a command: exact token ids, learning, preferences and references, resuming, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl import preferences, train_dpo
from rl.arguments import DPOArguments
from rl.preference_cases import cases_of
from rl.preference_options import PreferenceOptions
from rl.preference_sets import PreferenceMaker
from rl.train_cases import draw_train_cases, prompt_rows
from serve.decoding.recommender import Recommender
from sid_builder import cli
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from tests.processes import in_two
from tests.rl.builders import make_model_dir
from tests.rl.dpo_cases import dpo_flags


@pytest.fixture(scope="module")
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


@pytest.fixture(scope="module")
def made(model_dir, tmp_path_factory) -> Path:
    """Preferences of `rl.preferences`: two beams and a random item behind 40 prompts."""
    path = tmp_path_factory.mktemp("made") / "preferences"
    mixture = ["--negatives", '{"beam": 2, "random": 1}', "--num_beams", "8", "--max_prompts", "40"]
    preferences.main(["--model", str(model_dir), "--output_dir", str(path), "--device", "cpu", *mixture])
    return path


def assert_same_model(found: Path, expected: Path, **tolerances):
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (found, expected))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, msg=name, **tolerances)


def test_token_ids_agree_with_trls_tokenisation(policy):
    """TRL renders the same conversation to the same ids under our own frame."""
    histories = draw_train_cases(policy, 30, "all", seed=0).take(np.array([4]))
    (made,) = PreferenceMaker(policy, PreferenceOptions(num_beams=4), 0).sets(cases_of(histories))
    template, spell = policy.template, policy.index.semantic_ids.spell
    (row,) = prompt_rows(histories, template)
    for answer in (made.chosen, *made.rejected):
        turns = [*row["prompt"], {"role": "assistant", "content": spell(answer.item)}]
        rendered = policy.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        assert rendered["input_ids"] == made.prompt_ids + answer.token_ids
    rendered = template.render("seqrec", made.chosen.item, row["history"])
    assert made.chosen.token_ids == rendered.completion_ids


def test_command_trains_on_what_it_makes_itself(model_dir, policy, tmp_path, capsys):
    flags = ["--max_steps", "15", "--learning_rate", "1e-3", "--logging_steps", "1", "--num_beams", "8"]
    argv = dpo_flags(model_dir, tmp_path / "dpo", *flags, "--negatives", '{"beam": 2}')
    train_dpo.main(argv)
    assert "40 sets from 40 prompts, rejected: 80 by beam" in capsys.readouterr().out
    history = json.loads((tmp_path / "dpo" / "log_history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)  # policy and reference start equal
    assert np.mean(losses[-3:]) < losses[0]
    assert (tmp_path / "dpo.preferences" / "sample.md").is_file()
    result = Recommender.load(tmp_path / "dpo" / "model", device="cpu")
    weights = policy.model.get_input_embeddings().weight
    assert not torch.equal(result.model.get_input_embeddings().weight, weights)
    own, args = cli.parse(DPOArguments, argv, lazy=["trl:DPOConfig"], own_defaults=train_dpo.OWN_DEFAULTS)
    trainer = train_dpo.build_trainer(Recommender.load(model_dir, device="cpu"), own, args)
    rows = [trainer.train_dataset[row] for row in range(4)]
    batch = trainer.data_collator(rows)
    answers = [row["chosen_ids"] for row in rows for _ in range(2)]
    answers += [ids for row in rows for ids in row["rejected_ids"]]
    for ids, mask, answer in zip(batch["input_ids"], batch["completion_mask"], answers, strict=True):
        assert ids[mask.bool()].tolist() == answer
        assert len(answer) == policy.index.semantic_ids.depth + 1


@pytest.mark.parametrize("training", ["full", "lora"])
def test_s_dpo_learns_to_tell_the_chosen_from_all_rejected(model_dir, made, tmp_path, training):
    rate = {"full": "2e-3", "lora": "1e-2"}[training]
    flags = ["--loss_type", "s_dpo", "--preferences", str(made), "--training", training, "--valid_cases", "0"]
    flags += f"--max_steps 25 --learning_rate {rate} --logging_steps 1 --gradient_checkpointing true".split()
    train_dpo.main(dpo_flags(model_dir, tmp_path / "dpo", *flags))
    history = json.loads((tmp_path / "dpo" / "log_history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[0] == pytest.approx(np.log(4), abs=1e-3)  # -log(1 / 4): one of four answers, all alike
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    assert [row for row in history if "rewards/accuracies" in row][-1]["rewards/accuracies"] > 0.9
    assert not (tmp_path / "dpo.preferences").exists()
    result = Recommender.load(tmp_path / "dpo" / "model", device="cpu")
    assert not any("lora" in name for name, _ in result.model.named_parameters())


def test_a_whole_run_is_the_same_in_trls_layout_and_with_log_probs_taken_before(model_dir, made, tmp_path):
    flags = ["--preferences", str(made), "--loss_type", "s_dpo", "sft", "--valid_cases", "0"]
    flags += ["--max_steps", "4", "--learning_rate", "1e-3"]
    variants = {
        "ours": [],
        "trl": ["--shared_prompt", "false"],
        "before": ["--precompute_ref_log_probs", "true"],
    }
    for name, more in variants.items():
        train_dpo.main(dpo_flags(model_dir, tmp_path / name, *flags, *more))
    assert_same_model(tmp_path / "ours", tmp_path / "trl", atol=2e-4, rtol=1e-3)
    assert_same_model(tmp_path / "before", tmp_path / "ours", atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("moving", ["false", "true"])
def test_resumed_run_equals_an_uninterrupted_one(model_dir, tmp_path, moving):
    """The preferences it made are read again, and so is a reference that had moved."""
    flags = [
        "--max_steps",
        "4",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
        "--save_total_limit",
        "3",
        "--learning_rate",
        "1e-3",
    ]
    flags += ["--valid_cases", "0", "--loss_type", "s_dpo", "--negatives", '{"beam": 1, "random": 2}']
    flags += ["--sync_ref_model", moving, "--ref_model_sync_steps", "1"]
    train_dpo.main(dpo_flags(model_dir, tmp_path / "whole", *flags))
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", cut / "checkpoint-2")
    shutil.copy(tmp_path / "whole" / "settings.json", cut)
    shutil.copytree(tmp_path / "whole.preferences", tmp_path / "cut.preferences")
    before = (tmp_path / "cut.preferences" / "manifest.json").stat().st_mtime_ns
    train_dpo.main(dpo_flags(model_dir, cut, *flags, "--resume_from_checkpoint", "true"))
    assert (tmp_path / "cut.preferences" / "manifest.json").stat().st_mtime_ns == before
    assert_same_model(cut, tmp_path / "whole", atol=0, rtol=0)


def test_a_reference_of_its_own(model_dir, made, tmp_path):
    """The first step's loss is measured from it; of another index it is refused."""
    flags = ["--preferences", str(made), "--valid_cases", "0", "--logging_steps", "1"]
    first = dpo_flags(model_dir, tmp_path / "first", *flags, *["--max_steps", "3", "--learning_rate", "3e-3"])
    train_dpo.main(first)
    one = [*flags, "--max_steps", "1", "--learning_rate", "0"]
    train_dpo.main(
        dpo_flags(tmp_path / "first" / "model", tmp_path / "on", *one, "--reference", str(model_dir))
    )
    logged = json.loads((tmp_path / "on" / "log_history.json").read_text())[0]
    assert abs(logged["loss"] - np.log(2)) > 0.01 and abs(logged["rewards/chosen"]) > 0.01
    other = make_model_dir(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="reference: .* was trained with another index"):
        train_dpo.main(dpo_flags(model_dir, tmp_path / "x", *one, "--reference", str(other)))
    with pytest.raises(InputError, match="preferences: .* were made with another index"):
        train_dpo.main(dpo_flags(other, tmp_path / "x", *one))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("training", ["full", "lora"])
def test_two_processes_train_what_one_trains(model_dir, tmp_path, training):
    """Preferences are made by both, and so are log-probs of the reference that are taken before (of LoRA's);
    a step of four prompts each is one of eight.
    """
    flags = ["--negatives", '{"beam": 2, "random": 1}', "--num_beams", "8", "--loss_type", "s_dpo"]
    flags += ["--training", training, "--valid_cases", "10", "--logging_steps", "1", "--max_steps", "4"]
    flags += ["--learning_rate", "1e-3", "--precompute_ref_log_probs", str(training == "lora")]
    train_dpo.main(dpo_flags(model_dir, tmp_path / "one", *flags))
    halved = dpo_flags(model_dir, tmp_path / "two", *flags, "--per_device_train_batch_size", "4")
    in_two(["-m", "rl.train_dpo", *halved])
    files = [tmp_path / f"{name}.preferences" / "preferences.parquet" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [json.loads((tmp_path / name / "log_history.json").read_text()) for name in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() & {"loss", "rewards/margins", "rewards/accuracies", "eval_ndcg@10"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
    assert_same_model(tmp_path / "two", tmp_path / "one", atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--negatives", '{"beam": 16}'], "negatives.beam: 16"),
        (["--lora", '{"r": 4}'], "lora: has no effect with training: full"),
        (["--preferences", "nowhere"], "nowhere: no such directory; expected a 'preferences' artefact"),
        (["--reference", "nowhere"], "nowhere: no such directory; expected a 'model' artefact"),
        (["--loss_type", "softmax"], "loss_type: 'softmax' is not known; use some of .*s_dpo"),
    ],
)
def test_bad_input_leaves_nothing_behind(model_dir, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        train_dpo.main(dpo_flags(model_dir, tmp_path / "out", *flags))
    assert not list(tmp_path.iterdir())


def test_a_length_limit_that_would_cut_answers_is_refused(model_dir, made, tmp_path):
    flags = ["--preferences", str(made), "--max_length", "8"]
    with pytest.raises(InputError, match="max_length: 8 cuts answers off"):
        train_dpo.main(dpo_flags(model_dir, tmp_path / "out", *flags))


def test_preferences_that_were_changed_are_told_apart(made, tmp_path):
    copy = tmp_path / "preferences"
    shutil.copytree(made, copy)
    artifact = open_artifact(copy, "preferences")
    artifact.verify_hashes()
    assert "sample.md" in artifact.manifest["files"]
    (copy / "sample.md").write_text("another")
    with pytest.raises(InputError, match="sample.md: content differs"):
        artifact.verify_hashes()
