"""`--plan` against what it plans: real models, optimizers and tables, counted operations, a real run."""

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prompts.branches import IGNORE
from prompts.pack import PromptPack
from sft import plan_data, train
from sft.adapters import lora_config
from sft.arguments import LoraOptions, NewTokenOptions, SftArguments
from sft.collators import BranchCollator
from sft.examples import TaskContext
from sft.plan import Steps
from sft.plan_data import draw_batches, measure
from sft.plan_flops import Batch, beam_flops, layers_flops, training_flops
from sft.plan_hardware import GPUS, Launch
from sft.plan_memory import resident_memory, state_bytes, step_memory
from sft.plan_model import NF4_BYTES, adapted, config_model, on_meta, plain, saved_bytes, shape_of
from sft.shards import training_rows
from sft.start import start_model, start_tokenizer
from sft.vocabulary import extend_model
from sid_builder.errors import InputError
from tests.builders import make_index
from tests.published_shapes import PUBLISHED, write_shape
from tests.sft.builders import make_interactions, write_checkpoint, write_sids

ROOT = Path(__file__).parents[2]
ONE = Launch(1, "none", mixed=False, source="a test")


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(5)
    return make_index(rng.permutation(np.unique(rng.integers(0, 8, (90, 3)), axis=0))[:60], (8, 8, 8))


@pytest.fixture(scope="module")
def sids(index, tmp_path_factory):
    return write_sids(tmp_path_factory.mktemp("sids") / "sids", index, make_interactions(60))


@pytest.fixture(scope="module")
def checkpoints(index, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        tied: write_checkpoint(root / f"tied_{tied}", index, "qwen3", tied, padding=0)
        for tied in (True, False)
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_their_published_sizes(name, tmp_path):
    shape, parameters = PUBLISHED[name]
    model = config_model(str(write_shape(tmp_path, *shape)), torch.bfloat16)
    counted = shape_of(model)
    assert counted.total == pytest.approx(parameters, rel=0.005)
    assert counted.weight_bytes == 2 * counted.total
    heads = 2 if not counted.tied else 1
    norms_and_biases = counted.total - counted.linear - heads * counted.embedding
    assert 0 < norms_and_biases < 0.001 * counted.total


WAYS = {
    "rows": {},
    "rows, untied": {"tied": False},
    "whole embeddings": {"new_tokens": NewTokenOptions(train="full")},
    "whole embeddings, untied": {"new_tokens": NewTokenOptions(train="full"), "tied": False},
    "rows, no dropout": {"lora": LoraOptions(dropout=0.0)},
    "dora": {"lora": LoraOptions(use_dora=True)},
    "full": {"training": "full"},
    "full, untied": {"training": "full", "tied": False},
}


def both_models(way, index, sids, checkpoints, dtype="float32"):
    """The real model as training wraps it, and the planned one."""
    from peft import get_peft_model

    given = dict(WAYS[way])
    checkpoint = checkpoints[given.pop("tied", True)]
    args = SftArguments(sid_dir=str(sids), model_name_or_path=str(checkpoint), dtype=dtype, **given)
    real, tokenizer, _, token_ids = start_model(args, PromptPack.load("chat"), index, seed=0)
    planned = config_model(str(checkpoint), getattr(torch, dtype))
    with on_meta():
        extend_model(planned, tokenizer)
    if args.training == "lora":
        real = get_peft_model(real, lora_config(args, real, token_ids))
        planned = adapted(planned, lora_config(args, planned, token_ids))
    return real, planned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_those_of_the_real_model(way, dtype, index, sids, checkpoints):
    real, planned = both_models(way, index, sids, checkpoints, dtype)
    learning = [p for p in real.parameters() if p.requires_grad]
    shape = shape_of(planned)
    assert {p.device.type for p in planned.parameters()} == {"meta"}
    assert shape.total == sum(p.numel() for p in real.parameters())
    assert shape.trainable == sum(p.numel() for p in learning)
    assert shape.weight_bytes == sum(p.nbytes for p in real.parameters())
    assert shape.trainable_bytes == sum(p.nbytes for p in learning)
    assert shape == shape_of(real)


@pytest.mark.parametrize("way", ["rows", "full"])
def test_weights_gradients_and_optimizer_take_what_real_ones_take(way, index, sids, checkpoints):
    real, planned = both_models(way, index, sids, checkpoints)
    learning = [p for p in real.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning)
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    memory = resident_memory(shape_of(planned), ONE, "adamw_torch")
    assert memory["weights"] * 2**30 == pytest.approx(sum(p.nbytes for p in real.parameters()))
    assert memory["gradients"] * 2**30 == pytest.approx(sum(p.grad.nbytes for p in learning))
    assert memory["optimizer"] * 2**30 == pytest.approx(sum(value.nbytes for value in states))


def test_sharding_divides_what_it_shares_out(tmp_path):
    shape = shape_of(config_model(str(write_shape(tmp_path, *PUBLISHED["Qwen2.5-7B"][0])), torch.bfloat16))
    parts = {
        sharding: resident_memory(shape, Launch(8, sharding, True, ""), "adamw_torch_fused")
        for sharding in ("ddp", "fsdp2", "zero2", "zero3")
    }
    billions = shape.total / 2**30
    # bf16 weights trained as they are; fp32 under FSDP2; bf16 with fp32 copies under ZeRO.
    assert parts["ddp"]["weights"] == pytest.approx(2 * billions)
    assert parts["ddp"]["optimizer"] == pytest.approx(4 * billions)
    assert parts["fsdp2"]["weights"] == pytest.approx(4 * billions / 8)
    assert parts["fsdp2"]["optimizer"] == pytest.approx(8 * billions / 8)
    assert parts["zero2"]["weights"] == pytest.approx(2 * billions)
    assert parts["zero2"]["gradients"] == pytest.approx(2 * billions / 8)
    assert parts["zero2"]["optimizer"] == parts["zero3"]["optimizer"] == pytest.approx(12 * billions / 8)
    assert parts["zero3"]["weights"] == pytest.approx(2 * billions / 8)
    assert state_bytes("paged_adamw_8bit", 4) == 2 and state_bytes("sgd", 4) == 0


def test_four_bit_weights_are_counted_as_bitsandbytes_keeps_them(index, sids, checkpoints):
    real, planned = both_models("rows", index, sids, checkpoints, "bfloat16")
    plain_bytes, shape = shape_of(planned), shape_of(planned, quantised=True)
    assert shape.trainable_bytes == 2 * shape.trainable, "TRL casts what is trained to bfloat16"
    saved = (2 - NF4_BYTES) * shape.linear + 2 * shape.trainable
    assert plain_bytes.weight_bytes - shape.weight_bytes == pytest.approx(saved)
    assert 4.12 < 8 * NF4_BYTES < 4.13  # QLoRA, section 3: 0.127 bits a weight for the scales


def count(model, batch, checkpointing=False):
    """Operations of a real forward and backward pass through embedding and layers."""
    if checkpointing:
        plain(model).gradient_checkpointing_enable()
    ids = torch.zeros(int(batch.rows), int(batch.width), dtype=torch.long)
    mask = torch.zeros(*ids.shape[:1], 1, ids.shape[1], ids.shape[1])
    with FlopCounterMode(display=False) as counter:
        hidden = plain(model).base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        forward = counter.get_total_flops()
        hidden.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["rows", "rows, untied", "whole embeddings", "dora", "full"])
def test_flops_are_those_counted(way, checkpointing, index, sids, checkpoints):
    """Within 2 %, but that the last layer's checkpointed pass is cut short behind its last saved tensor."""
    real, planned = both_models(way, index, sids, checkpoints)
    real.train()
    plain(real).set_attn_implementation("eager")  # the counter knows its products, not the CPU's fused kernel
    batch = Batch.of(3, 40, 0)
    forward, both = count(real, batch, checkpointing)
    shape = shape_of(planned)
    assert layers_flops(shape, batch) == pytest.approx(forward, rel=0.02)
    assert training_flops(shape, batch, 0, checkpointing) == pytest.approx(
        both, rel=0.1 if checkpointing else 0.02
    )


def test_full_training_costs_six_and_lora_four_a_token(tmp_path):
    """The rules of thumb, on a real shape with short rows and no head."""
    model = config_model(str(write_shape(tmp_path, *PUBLISHED["Llama-3.1-8B"][0])), torch.bfloat16)
    batch = Batch.of(1, 16, 0)
    full = training_flops(shape_of(model), batch, 0, checkpointing=False)
    shape = shape_of(model)
    assert full == pytest.approx(6 * shape.linear * 16, rel=0.01)
    assert training_flops(shape, batch, 0, True) == pytest.approx(8 * shape.linear * 16, rel=0.01)
    frozen = dataclasses.replace(shape, base_learns=False, head_learns=False)
    assert training_flops(frozen, batch, 0, False) == pytest.approx(4 * shape.linear * 16, rel=0.01)


@pytest.mark.parametrize("learns", [False, True])
def test_the_head_costs_what_trls_costs(learns, index, sids, checkpoints):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    _, planned = both_models("full", index, sids, checkpoints)
    shape = dataclasses.replace(shape_of(planned), head_learns=learns)
    scored = 70
    hidden = torch.randn(scored, shape.hidden, requires_grad=True)
    weight = torch.randn(shape.vocabulary, shape.hidden, requires_grad=learns)

    def product(left, right, out_shape=None, **kwargs):
        return 2 * left[0] * left[1] * right[1]

    def added(into, left, right, out_shape=None, **kwargs):
        return product(left, right)

    # In place and with `out=`, products are operators of their own, which the counter does not know.
    mapping = {torch.ops.aten.addmm_: added}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        targets = torch.zeros(scored, dtype=torch.long)
        logprobs, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs",)
        )
        logprobs.sum().backward()
    without = training_flops(shape, Batch.of(0, 0, scored), 0, False)
    assert training_flops(shape, Batch.of(0, 0, scored), scored, False) - without == counter.get_total_flops()


@pytest.mark.parametrize("way", ["rows, no dropout", "full"])
def test_saved_bytes_are_what_autograd_keeps(way, index, sids, checkpoints):
    """Without dropout, of which torch keeps floats on CPU, where the plan counts CUDA's bytes."""
    real, planned = both_models(way, index, sids, checkpoints)
    real.train()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*real.parameters(), *real.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids, mask = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 1, 40, 40)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = plain(real).base_model(ids, position_ids=ids, attention_mask=mask, use_cache=False)
    assert output.last_hidden_state.requires_grad
    assert saved_bytes(planned, 3, 40, None) == sum(kept.values())


def test_what_saves_memory_saves_it(index, sids, checkpoints, tmp_path):
    path = str(write_shape(tmp_path, *PUBLISHED["Qwen2.5-0.5B"][0]))
    single, half = (
        saved_bytes(config_model(path, dtype), 4, 128, mixed)
        for dtype, mixed in ((torch.float32, None), (torch.bfloat16, torch.bfloat16))
    )
    assert half < 0.7 * single
    # Autocast keeps half-precision copies of fp32 weights until the backward pass.
    shape = shape_of(config_model(path, torch.float32))
    assert saved_bytes(config_model(path, torch.float32), 4, 128, torch.bfloat16) > half + 2 * shape.linear
    batch = Batch.of(4, 128, 30)
    kept, saving = (step_memory(shape, batch, single, 30, on)["activations"] for on in (False, True))
    assert saving < 0.2 * kept
    kept = {
        way: saved_bytes(both_models(way, index, sids, checkpoints)[1], 3, 40, None)
        for way in ("rows", "rows, no dropout")
    }
    assert kept["rows"] > kept["rows, no dropout"]


def context_of(index, sids, checkpoints, num_users=30):
    args = SftArguments(sid_dir=str(sids), model_name_or_path=str(checkpoints[True]))
    tokenizer, template, _ = start_tokenizer(args, PromptPack.load("chat"), index)
    return TaskContext(index, make_interactions(60, num_users), template), tokenizer


MIXTURE = {"seqrec": 1.0, "title2sid": 2.0, "sid_history2title": 0.5}


def test_small_data_is_counted_exactly(index, sids, checkpoints, tmp_path):
    context, tokenizer = context_of(index, sids, checkpoints)
    volume = measure(context, MIXTURE, seed=3)
    rows = training_rows(context, MIXTURE, 3, tmp_path / "rows", {})
    labels = sum(label != IGNORE for row in rows["shift_labels"] for label in row)
    assert volume.rows.error == volume.tokens.error == 0
    assert (volume.rows.value, volume.tokens.value) == (len(rows), sum(rows["length"]))
    assert volume.labels.value == labels
    batches = draw_batches(volume.sample, 16, BranchCollator(tokenizer.pad_token_id, torch.float32), 0)
    assert batches.masked and batches.largest.cells > batches.mean.cells
    assert batches.mean.labelled == pytest.approx(16 * labels / len(rows), rel=0.2)
    assert 16 * sum(rows["length"]) / len(rows) < 1.1 * batches.mean.cells, "packing leaves little padding"


def test_large_data_is_estimated_with_its_error(index, sids, checkpoints, monkeypatch):
    context, _ = context_of(index, sids, checkpoints, num_users=1500)
    exact = measure(context, MIXTURE, seed=3)
    monkeypatch.setattr(plan_data, "WHOLE", 10)
    monkeypatch.setattr(plan_data, "_SAMPLE_PART", 24)
    monkeypatch.setattr(plan_data, "_SAMPLE_PARTS", 32)
    estimate = measure(context, MIXTURE, seed=3)
    assert estimate.rendered < 0.7 * exact.rendered
    for name in ("rows", "tokens", "labels"):
        true, guess = getattr(exact, name).value, getattr(estimate, name)
        assert 0 < guess.error < 0.1 * true
        assert abs(guess.value - true) < guess.error, name


def test_few_rows_are_kept_and_the_longest_among_them(index, sids, checkpoints, monkeypatch):
    context, _ = context_of(index, sids, checkpoints, num_users=100)
    whole = measure(context, MIXTURE, seed=3)
    monkeypatch.setattr(plan_data, "_KEPT", 40)
    few = measure(context, MIXTURE, seed=3)
    assert (few.rendered, few.tokens) == (whole.rendered, whole.tokens) and whole.rendered > 200
    lengths = [len(example.input_ids) for example in few.sample]
    longest = max(len(example.input_ids) for example in whole.sample)
    assert len(lengths) == 40 and lengths[0] == longest
    # From beginning to end, not the first ones.
    order = {id_: number for number, id_ in enumerate(map(repr, whole.sample))}
    places = [order[repr(example)] for example in few.sample]
    assert max(places) > 0.8 * whole.rendered and min(places) < 0.2 * whole.rendered


def test_steps_are_counted_as_trainer_does():
    config = SimpleNamespace(gradient_accumulation_steps=4, max_steps=-1, num_train_epochs=2.5)
    assert Steps.of(config, 41) == Steps(11, 28)
    config.max_steps = 7
    assert Steps.of(config, 41) == Steps(11, 7)
    config.eval_strategy, config.eval_steps = "steps", 3
    assert Steps(11, 7).evaluations(config) == 2
    config.eval_strategy = "epoch"
    assert Steps(11, 28).evaluations(config) == 3


COMMON = ["--bf16", "true", "--report_to", "none", "--seed", "3", "--disable_tqdm", "true"]


def plan_of(capsys, sids, *flags):
    train.main(["--sid_dir", str(sids), *COMMON, "--plan", "true", *map(str, flags)])
    text = capsys.readouterr().out
    return text, json.loads(text.strip().splitlines()[-1])


@pytest.fixture
def weightless(checkpoints, tmp_path):
    """A checkpoint's directory without its weights."""
    path = tmp_path / "weightless"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        with contextlib.suppress(FileNotFoundError):
            (path / name).write_bytes((checkpoints[True] / name).read_bytes())
    return path


def test_a_plan_is_what_then_happens(sids, weightless, checkpoints, tmp_path, capsys):
    """bf16 without a GPU, without weights; nothing is written; the real run takes as many steps and rows."""
    flags = ["--num_train_epochs", 2, "--gradient_accumulation_steps", 2, "--valid_cases", 5]
    output = tmp_path / "out"
    given = ["--model_name_or_path", weightless, "--output_dir", output]
    text, figures = plan_of(capsys, sids, *given, *flags)
    assert not output.exists()
    assert "fits" in text and "does not fit" not in text and "counted" in text
    real = ["--sid_dir", str(sids), *COMMON, "--use_cpu", "true", "--bf16", "false", *map(str, flags)]
    real += ["--model_name_or_path", str(checkpoints[True]), "--output_dir", str(output)]
    train.main(real)
    summary = json.loads((output / "manifest.json").read_text())["summary"]
    assert (figures["steps"], figures["rows"]) == (summary["steps"], summary["rows"])


def test_a_plan_from_scratch(sids, tmp_path, capsys):
    flags = ["--from_scratch", '{"hidden_size": 32, "num_layers": 1}', "--training", "full"]
    _, figures = plan_of(capsys, sids, *flags, "--prompt_pack", "plain", "--output_dir", tmp_path / "out")
    assert figures["parameters"] == figures["trainable"] > 0
    assert figures["flops"] > 0 and figures["peak_gib"] < 2


def test_layouts_differ_in_what_is_computed(sids, weightless, tmp_path, capsys):
    given = ["--model_name_or_path", weightless, "--output_dir", tmp_path / "out", "--layout"]
    flops = {
        layout: plan_of(capsys, sids, *given, layout)[1]["flops"]
        for layout in (
            '{"positions": "windows"}',
            '{"positions": "windows", "batches": "padded"}',
            '{"positions": "windows", "batches": "padding_free"}',
        )
    }
    packed, padded, free = flops.values()
    assert packed < padded and free < padded


def test_what_does_not_fit_is_said_with_remedies(index, sids, weightless, tmp_path, capsys):
    write_shape(weightless, *PUBLISHED["Llama-3.1-8B"][0])
    flags = ["--model_name_or_path", weightless, "--output_dir", tmp_path / "out", "--training", "full"]
    text, figures = plan_of(capsys, sids, *flags)
    assert figures["memory_gib"]["optimizer"] == pytest.approx(2 * figures["memory_gib"]["weights"], rel=1e-3)
    assert figures["hours"]["RTX 4090 24 GB"] is None
    remedies = text.split("To take less memory:")[1]
    # The optimizer is the largest part, so what helps it comes first.
    order = ["training: lora", "fsdp2.yaml", "load_in_4bit", "gradient_checkpointing: true"]
    places = [remedies.index(remedy) for remedy in order]
    assert places == sorted(places)
    text, smaller = plan_of(
        capsys, sids, *flags[:-1], "lora", "--dtype", "bfloat16", "--load_in_4bit", "true"
    )
    assert smaller["hours"]["RTX 4090 24 GB"] is not None


def test_a_launch_is_read_from_its_file_or_its_environment(tmp_path):
    config = SimpleNamespace(bf16=True, fp16=False, world_size=1)

    def of(text):
        path = tmp_path / "launch.yaml"
        path.write_text(text)
        return Launch.current(config, {"ACCELERATE_CONFIG_FILE": str(path)})

    for name, sharding in (("cpu", "none"), ("ddp", "ddp"), ("fsdp2", "fsdp2"), ("zero2", "zero2")):
        shipped = str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
        assert Launch.current(config, {"ACCELERATE_CONFIG_FILE": shipped}).sharding == sharding
    assert of("distributed_type: MULTI_GPU\nnum_processes: 8\n").sharding == "ddp"
    assert of('distributed_type: "NO"\nnum_processes: 1\n') == Launch(
        1, "none", True, str(tmp_path / "launch.yaml")
    )
    fsdp = "distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: %s}\n"
    assert of(fsdp % 2).sharding == "fsdp2"
    zero = "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {zero_stage: %s}\n"
    assert [of(zero % stage).sharding for stage in (2, 3)] == ["zero2", "zero3"]
    for text, message in (
        (fsdp % 1, "fsdp1 cannot be planned"),
        (zero % 1, "zero1 cannot be planned; use fsdp2, zero2 or zero3"),
        ("distributed_type: TPU\n", "distributed_type 'TPU' cannot be planned"),
        ("num_processes: 0\n", "num_processes is 0"),
    ):
        with pytest.raises(InputError, match=message):
            of(text)
    config.world_size = 4
    assert Launch.current(config, {}).sharding == "ddp"
    assert Launch.current(config, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}).sharding == "fsdp2"
    zero_env = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert Launch.current(config, zero_env).sharding == "zero3"


def test_processes_share_the_work(sids, weightless, tmp_path, capsys, monkeypatch):
    given = ["--model_name_or_path", weightless, "--output_dir", tmp_path / "out"]
    _, alone = plan_of(capsys, sids, *given)
    launch = tmp_path / "launch.yaml"
    launch.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(launch))
    text, shared = plan_of(capsys, sids, *given)
    assert (shared["processes"], shared["sharding"]) == (2, "ddp")
    assert shared["steps"] == -(-alone["steps"] // 2)
    assert shared["flops"] == pytest.approx(alone["flops"], rel=0.1)
    assert "this CPU" not in text, "a CPU is no second device"
    launch.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    with pytest.raises(InputError, match="new_tokens.train: 'rows' cannot be trained under FSDP2"):
        plan_of(capsys, sids, *given)
    given += ["--new_tokens", '{"train": "full"}']
    assert plan_of(capsys, sids, *given)[1]["sharding"] == "fsdp2"
    with pytest.raises(InputError, match="valid_cases: 5 cannot be ranked under fsdp2"):
        plan_of(capsys, sids, *given, "--valid_cases", 5)


def test_a_checkpoint_out_of_reach_is_named(sids, tmp_path, capsys):
    given = ["--model_name_or_path", "nobody/nothing", "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match="'nobody/nothing' has no config.json within reach; a plan needs"):
        plan_of(capsys, sids, *given)


def test_a_beam_costs_what_its_tokens_cost(tmp_path):
    shape = shape_of(config_model(str(write_shape(tmp_path, *PUBLISHED["Qwen2.5-0.5B"][0])), torch.bfloat16))
    one, many = beam_flops(shape, 100, 1, 3), beam_flops(shape, 100, 50, 3)
    # The prompt once, then 2 x 50 tokens of beams with a head each.
    per_token = 2 * shape.linear
    assert one == pytest.approx(102 * per_token + 3 * 2 * shape.embedding, rel=0.03)
    assert many == pytest.approx(200 * per_token + 101 * 2 * shape.embedding, rel=0.03)


def test_peaks_are_plausible():
    for machine in GPUS:
        assert 1.5 < machine.bf16_tflops / machine.fp32_tflops < 20
