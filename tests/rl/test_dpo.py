"""Preference pairs from the model's own beams, their exact token ids, and a short DPO run."""

import json

import numpy as np
import pytest
import torch

from rl import train_dpo
from rl.arguments import DPOArguments
from rl.preferences import build_preferences
from rl.train_cases import draw_train_cases, prompt_rows
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from sid_builder.errors import InputError


@pytest.fixture(scope="module")
def policy(model_dir) -> Recommender:
    return Recommender.load(model_dir, device="cpu")


@pytest.fixture(scope="module")
def cases(policy):
    return draw_train_cases(policy, 30, "all", seed=0)


def arguments(model_dir, output_dir, *flags: str) -> list[str]:
    common = f"--model_name_or_path {model_dir} --output_dir {output_dir} --use_cpu true --bf16 false"
    common += " --disable_tqdm true --save_strategy no"
    sizes = "--per_device_train_batch_size 8 --valid_cases 20 --max_prompts 40"
    return [*common.split(), *sizes.split(), *flags]


def test_pairs_set_the_truth_against_the_best_wrong_beams(policy, cases):
    pairs = build_preferences(policy, cases, num_beams=8, num_negatives=3, seed=0)
    ids, template = policy.index.semantic_ids, policy.template
    assert len(pairs) == 3 * len(cases)
    for pair in pairs:
        assert pair.chosen_ids == [*template.sid_ids[pair.chosen_item], template.end_id]
        assert pair.rejected_ids == [*template.sid_ids[pair.rejected_item], template.end_id]
        assert ids.spell(pair.chosen_item) != ids.spell(pair.rejected_item)
    one = next(pair for pair in pairs if pair.rejected_rank == 0)
    (top,) = decode(policy.model, [one.prompt_ids], policy.trie, 8)
    assert one.rejected_item in [*top.items_K]


def test_an_item_that_shares_the_targets_sid_is_never_rejected(policy):
    # Item 58 and 59 share an SID. A sequence that asks for 58, ranked by a beam as wide as the catalogue.
    from sid_builder.interactions import Interactions

    interactions = Interactions.leave_one_out(["u"], [np.array([3, 58, 5, 7])])
    pairs = build_preferences(policy, interactions.histories("train"), num_beams=60, num_negatives=59, seed=0)
    assert {pair.chosen_item for pair in pairs} == {58}
    assert len(pairs) == 59 - 2  # 59 SIDs, without the truth's and without the history's
    assert not {58, 59} & {pair.rejected_item for pair in pairs}


def test_options(policy, cases):
    every = build_preferences(policy, cases, num_beams=4, num_negatives=1, seed=0)
    drawn = build_preferences(policy, cases, num_beams=4, num_negatives=1, seed=0, max_pairs=5)
    assert drawn == every[:5]
    assert build_preferences(policy, cases, num_beams=4, num_negatives=1, seed=1) != every
    wide = build_preferences(policy, cases, num_beams=60, num_negatives=1, seed=0, only_hits=True)
    assert len(wide) == len(cases)


def test_token_ids_agree_with_trls_tokenisation(policy, cases):
    """TRL renders the same conversation to the same ids under our own frame."""
    (pair,) = build_preferences(policy, cases.take(np.array([4])), num_beams=4, num_negatives=1)
    template, spell = policy.template, policy.index.semantic_ids.spell
    (row,) = prompt_rows(cases.take(np.array([4])), template)
    for item, ids in ((pair.chosen_item, pair.chosen_ids), (pair.rejected_item, pair.rejected_ids)):
        turns = [*row["prompt"], {"role": "assistant", "content": spell(item)}]
        rendered = policy.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        assert rendered["input_ids"] == pair.prompt_ids + ids
    assert pair.chosen_ids == template.render("seqrec", pair.chosen_item, row["history"]).completion_ids


def test_command_trains_and_the_collator_sees_exactly_our_ids(model_dir, policy, tmp_path, capsys):
    from sid_builder import cli

    flags = [
        "--max_steps",
        "15",
        "--learning_rate",
        "1e-3",
        "--logging_steps",
        "1",
        "--num_negatives",
        "2",
        "--num_beams",
        "8",
    ]
    argv = arguments(model_dir, tmp_path / "dpo", *flags)
    own, args = cli.parse(DPOArguments, argv, lazy=["trl:DPOConfig"], own_defaults=train_dpo.OWN_DEFAULTS)
    trainer = train_dpo.build_trainer(Recommender.load(model_dir, device="cpu"), own, args)
    rows = [trainer.train_dataset[row] for row in range(4)]
    batch = trainer.data_collator(rows)
    for row, ids, mask in zip(rows, batch["input_ids"], batch["completion_mask"], strict=False):
        assert ids[mask.bool()].tolist() == row["chosen_ids"]
        assert len(row["chosen_ids"]) == len(row["rejected_ids"]) == policy.index.semantic_ids.depth + 1
    train_dpo.main(argv)
    assert "rejected item stood first in" in capsys.readouterr().out
    history = json.loads((tmp_path / "dpo" / "log_history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)  # policy and reference start equal
    assert np.mean(losses[-3:]) < losses[0]
    result = Recommender.load(tmp_path / "dpo" / "model", device="cpu")
    weights = policy.model.get_input_embeddings().weight
    assert not torch.equal(result.model.get_input_embeddings().weight, weights)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_negatives", "16"], "num_negatives: 16"),
        (["--num_negatives", "0"], "num_negatives: 0"),
        (["--lora", '{"r": 4}'], "lora: has no effect with training: full"),
    ],
)
def test_bad_input_leaves_nothing_behind(model_dir, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        train_dpo.main(arguments(model_dir, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_a_length_limit_that_would_cut_answers_is_refused(model_dir, tmp_path):
    with pytest.raises(InputError, match="max_length: 8 cuts answers off"):
        train_dpo.main(arguments(model_dir, tmp_path / "out", "--max_length", "8"))
