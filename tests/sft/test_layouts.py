"""Every layout of a batch gives one loss and one gradient, with gradient checkpointing as well."""

import pytest
import torch
from transformers.modeling_flash_attention_utils import (
    _is_packed_sequence,
    prepare_fa_kwargs_from_position_ids,
)
from trl import SFTConfig

from prompts.branches import IGNORE
from sft.arguments import LayoutOptions
from sft.collators import PaddingFreeCollator
from sft.examples import TaskContext
from sft.shards import training_rows
from sft.trainer import SidTrainer
from sid_builder.errors import InputError
from tests.builders import make_recommender
from tests.sft.builders import make_interactions

LAYOUTS = [
    LayoutOptions("all", "packed"),
    LayoutOptions("all", "padded"),
    LayoutOptions("windows", "packed"),
    LayoutOptions("windows", "padded"),
    LayoutOptions("windows", "padding_free"),
    LayoutOptions("all", "packed", "eager"),
    LayoutOptions("windows", "padding_free", "eager"),
]
NAMES = ["/".join(vars(layout).values()) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def interactions():
    return make_interactions(40, num_users=8)


@pytest.fixture(scope="module")
def rows(index, interactions, tmp_path_factory):
    """The same cases as one row a user and as one row a target, answers of other lengths between."""
    template = make_recommender(index).template
    made, weights = {}, {"seqrec": 1.0, "sid2title": 0.3, "title2sid": 0.3}
    for positions in ("all", "windows"):
        context = TaskContext(index, interactions, template, positions=positions)
        directory = tmp_path_factory.mktemp(positions) / "rows"
        made[positions] = training_rows(context, weights, 0, directory, {})
    assert len(made["windows"]) > len(made["all"]) + 10
    return made


def make_trainer(recommender, rows, interactions, layout, directory, **flags):
    config = SFTConfig(
        str(directory),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{"gradient_checkpointing": False, "disable_tqdm": True, **flags},
    )
    return SidTrainer(
        recommender.model,
        config,
        rows[layout.positions],
        recommender.tokenizer,
        recommender.template,
        interactions,
        layout=layout,
    )


def loss_and_gradients(trainer):
    """Of all rows as one batch."""
    model, table = trainer.model, trainer.train_dataset
    model.zero_grad()
    model.train()
    loss = trainer.compute_loss(model, trainer.data_collator([table[row] for row in range(len(table))]))
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


def plain_loss_and_gradients(model, table):
    """Each window as a sequence of its own, by transformers alone."""
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for row in table:
        labels = torch.tensor(row["shift_labels"])
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORE, reduction="sum"
        )
        count += int((labels != IGNORE).sum())
    (total / count).backward()
    return float(total.detach() / count), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    for name, gradient in expected[1].items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * max(scale, 1.0), msg=name)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_all_layouts_have_one_loss_and_one_gradient(index, interactions, rows, tmp_path, architecture):
    recommender = make_recommender(index, architecture, tied=architecture != "llama")
    expected = plain_loss_and_gradients(recommender.model, rows["windows"])
    shapes = set()
    for layout in LAYOUTS:
        trainer = make_trainer(recommender, rows, interactions, layout, tmp_path)
        assert recommender.model.config._attn_implementation == layout.attention
        assert_same(loss_and_gradients(trainer), expected)
        batch = trainer.data_collator(list(rows[layout.positions]))
        shapes.add((*batch["input_ids"].shape, batch.get("attention_mask") is None, layout.attention))
    assert len(shapes) == len(LAYOUTS), f"layouts are layouts: {shapes}"


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[4]], ids=[NAMES[0], NAMES[4]])
def test_gradient_checkpointing_changes_nothing(index, interactions, rows, tmp_path, layout, monkeypatch):
    recommender = make_recommender(index)
    expected = loss_and_gradients(make_trainer(recommender, rows, interactions, layout, tmp_path))
    calls = []
    keep = SidTrainer._keep_labelled_rows
    monkeypatch.setattr(SidTrainer, "_keep_labelled_rows", lambda *given: calls.append(None) or keep(*given))
    trainer = make_trainer(recommender, rows, interactions, layout, tmp_path, gradient_checkpointing=True)
    trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    recomputed = []
    norm = trainer.model.model.layers[0].input_layernorm
    norm.register_forward_hook(lambda *given: recomputed.append(None))
    assert_same(loss_and_gradients(trainer), expected)
    assert len(recomputed) == 2 and len(calls) == 1, "layers run again, the backbone's hook once"


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[4]], ids=[NAMES[0], NAMES[4]])
def test_accumulated_batches_are_one_batch(index, interactions, rows, tmp_path, layout):
    """Four batches of three rows, each of another number of labels, make the step of one batch of twelve."""
    ends = {}
    for size, steps in ((12, 1), (3, 4)):
        recommender = make_recommender(index)
        trainer = make_trainer(
            recommender,
            rows,
            interactions,
            layout,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            optim="sgd",
            learning_rate=0.1,
        )
        labels = [int((batch["shift_labels"] != IGNORE).sum()) for batch in trainer.get_train_dataloader()]
        assert len(set(labels)) > 1
        trainer.train()
        ends[size] = trainer.state.log_history[0], recommender.model.state_dict()
    (whole, weights), (parts, accumulated) = ends[12], ends[3]
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert parts["num_tokens"] == whole["num_tokens"]
    for name, weight in weights.items():
        torch.testing.assert_close(accumulated[name], weight, rtol=0, atol=1e-6)


def test_flash_attention_is_told_where_examples_end(rows):
    """What transformers derives from the position ids for its kernels, which no CPU can run."""
    examples = list(rows["windows"])[:5]
    batch = PaddingFreeCollator()(examples)
    assert set(batch) == {"input_ids", "position_ids", "shift_labels", "labels"}
    assert _is_packed_sequence(batch["position_ids"], batch_size=1)
    (query, key), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    lengths = [example["length"] for example in examples]
    assert query.diff().tolist() == key.diff().tolist() == lengths
    assert longest == max(lengths)


def test_padding_free_refuses_branches(rows):
    with pytest.raises(InputError, match="layout.batches: 'padding_free' has no mask .* task 'seqrec'"):
        PaddingFreeCollator()(list(rows["all"]))


def test_valid_is_ranked_under_sdpa_and_training_goes_on_as_it_was(index, interactions, rows, tmp_path):
    layout = LayoutOptions("windows", "padding_free", "eager")
    trainer = make_trainer(make_recommender(index), rows, interactions, layout, tmp_path)
    seen = []

    def figures(model):
        seen.append(model.config._attn_implementation)
        return {}

    trainer.valid_ranking = type("Ranking", (), {"figures": staticmethod(figures)})()
    trainer.evaluate(rows["windows"].select(range(4)))
    assert seen == ["sdpa"] and trainer.model.config._attn_implementation == "eager"
