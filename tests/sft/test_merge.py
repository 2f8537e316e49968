"""sft.merge of other projects' weights: adapters against PEFT's own logits, deltas to the bit, and what is
refused. (Runs of sft.train are merged in the other files of this folder.)
"""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prompts.vocabulary import used_tokens
from serve.decoding import tree_beam
from serve.decoding.recommender import Recommender
from sft import merge
from sid_builder.artifact import open_artifact
from sid_builder.errors import InputError
from tests.sft.builders import write_checkpoint
from tests.sft.command_line import run_sft

GRID = 2.0**-12  # sums and differences of small multiples of it are exact in fp32


@pytest.fixture(scope="module")
def base(index, tmp_path_factory):
    """A published base: no SID tokens, an untied head, weights on a grid on which fp32 sums are exact."""
    path = write_checkpoint(tmp_path_factory.mktemp("base") / "model", index, "llama", tied=False)
    model = AutoModelForCausalLM.from_pretrained(path)
    on_grid(model)
    model.save_pretrained(path)
    return path


def on_grid(model, seed=None):
    """Round weights to a grid, after random changes if a seed is given."""
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if seed is not None:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((parameter / GRID).round() * GRID)


def extended_tokenizer(base, index):
    """The tokens that items use in the order of their text, and no pad token, as LLaMA's have none."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.add_tokens(sorted(used_tokens(index.semantic_ids)))
    return tokenizer


def into_model(path, sids, base, *further):
    """`sft.merge` of a peer's weights; the model directory, opened."""
    given = ["--base_model", base, "--sid_dir", sids, "--prompt_pack", "chat", "--output_dir", path, *further]
    merge.main([str(argument) for argument in given])
    open_artifact(path, "model").verify_hashes()
    recommender = Recommender.load(path)
    assert recommender.tokenizer.pad_token == recommender.tokenizer.eos_token
    return recommender


def logits(model, tokenizer):
    ids = tokenizer("Thing number 7 <a_3><b_1><c_2> of kind", return_tensors="pt").input_ids
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits


def write_adapter(path, base, index, **options):
    """What LC-Rec's LoRA script leaves, with random weights: adapters, both embeddings, the tokenizer."""
    tokenizer = extended_tokenizer(base, index)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    settings = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    wrapped = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings | options))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return wrapped, tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_gives_pefts_logits(index, sids, base, tmp_path, tied):
    """On a tied base PEFT trains two matrices, so the merged model has two."""
    if tied:
        base = write_checkpoint(tmp_path / "base", index, "qwen2", tied=True)
    wrapped, tokenizer = write_adapter(tmp_path / "adapter", base, index)
    recommender = into_model(tmp_path / "model", sids, base, "--adapter", tmp_path / "adapter")
    torch.testing.assert_close(
        logits(recommender.model, recommender.tokenizer), logits(wrapped, tokenizer), rtol=1e-4, atol=1e-4
    )
    assert not recommender.model.config.tie_word_embeddings
    (ranking,) = tree_beam.decode(
        recommender.model, [recommender.template.seqrec_prompt([3, 5])], recommender.trie, 40
    )
    assert sorted(ranking.items_K) == list(range(40))


def test_an_adapter_in_the_old_file_format(index, sids, base, tmp_path):
    wrapped, tokenizer = write_adapter(tmp_path / "adapter", base, index)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    recommender = into_model(tmp_path / "model", sids, base, "--adapter", tmp_path / "adapter")
    torch.testing.assert_close(
        logits(recommender.model, recommender.tokenizer), logits(wrapped, tokenizer), rtol=1e-4, atol=1e-4
    )


def write_delta(path, base, index, dtype=torch.float32, pickled=False, shards=1):
    """A target and LC-Rec's delta of it: differences where shapes agree, the target's own where they do not.

    Returns the target's state dict.
    """
    tokenizer = extended_tokenizer(base, index)
    target = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    target.resize_token_embeddings(len(tokenizer))
    on_grid(target, seed=6)
    wanted = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    origin = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            if tensor.shape == origin[name].shape:
                tensor -= origin[name]
    if pickled:
        path.mkdir()
        target.config.save_pretrained(path)
        names = sorted(wanted)
        weight_map = {}
        for shard in range(shards):
            file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
            part = {name: target.state_dict()[name] for name in names[shard::shards]}
            if not shard:  # transformers of LLaMA's day saved it
                part["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
            torch.save(part, path / file)
            weight_map |= dict.fromkeys(part, file)
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        target.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return wanted


@pytest.mark.parametrize(("pickled", "shards"), [(False, 1), (True, 3)])
def test_a_delta_gives_the_target_to_the_bit(index, sids, base, tmp_path, pickled, shards):
    wanted = write_delta(tmp_path / "delta", base, index, pickled=pickled, shards=shards)
    recommender = into_model(tmp_path / "model", sids, base, "--delta", tmp_path / "delta")
    found = recommender.model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) == shards
    summary = open_artifact(tmp_path / "model", "model").summary
    assert summary["parameters"] == sum(tensor.numel() for tensor in wanted.values())
    assert summary["architecture"] == "LlamaForCausalLM"


def test_a_half_precision_delta_is_summed_as_its_authors_do(index, sids, base, tmp_path):
    """In fp16, base rounded first: the differences were rounded, so other arithmetic gives other bits."""
    write_delta(tmp_path / "delta", base, index, torch.float16)
    recommender = into_model(tmp_path / "model", sids, base, "--delta", tmp_path / "delta")
    delta = AutoModelForCausalLM.from_pretrained(tmp_path / "delta", dtype=torch.float16).state_dict()
    origin = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).state_dict()
    for name, tensor in recommender.model.state_dict().items():
        same_shape = delta[name].shape == origin[name].shape
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, delta[name] + origin[name] if same_shape else delta[name]), name


def test_wrong_and_missing_parts_are_named(index, sids, base, tmp_path):
    narrow = write_checkpoint(tmp_path / "narrow", index, "llama", tied=False)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(narrow, hidden_size=16, intermediate_size=48, head_dim=8)
    )
    model.save_pretrained(narrow)
    write_adapter(tmp_path / "adapter", base, index)
    write_delta(tmp_path / "delta", base, index, pickled=True, shards=2)

    def refused(message, base_model, *further, pack="chat"):
        given = ["--base_model", base_model, "--sid_dir", sids, "--output_dir", tmp_path / "out", *further]
        given += ["--prompt_pack", pack] if pack else []
        with pytest.raises(InputError, match=message) as caught:
            merge.main([str(argument) for argument in given])
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    adapter, delta = ["--adapter", tmp_path / "adapter"], ["--delta", tmp_path / "delta"]
    refused("base_model: its embeddings are 16 wide, and those of the adapter", narrow, *adapter)
    refused("base_model: .*narrow does not fit the delta .*: .* is shape", narrow, *delta)
    refused("prompt_pack: is missing", base, *adapter, pack=None)
    refused("delta: .* with --adapter", base, *adapter, *delta)
    refused("adapter: .* has no adapter_config.json", base, "--adapter", tmp_path / "delta")
    refused("base_model: 'no/such/base' cannot be opened", "no/such/base", *adapter)
    refused("base_model: 'no/such/base' is no directory and cannot be fetched", "no/such/base", *delta)
    refused("delta: 'no/such/delta' has no tokenizer that opens", base, "--delta", "no/such/delta")
    # The base's own tokenizer has no SID tokens.
    refused("tokenizer: '<a_0>', which the SID index uses, is not in its vocabulary", base)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    refused("adapter: .* has no adapter_model.safetensors", base, *adapter)
    shutil.copy(tmp_path / "delta" / "config.json", tmp_path / "config.json")
    (tmp_path / "delta" / "pytorch_model-00002-of-00002.bin").unlink()
    refused("delta: .* lacks pytorch_model-00002-of-00002.bin", base, *delta)
    (tmp_path / "delta" / "pytorch_model-00002-of-00002.bin").write_bytes(b"not a checkpoint")
    refused("delta: .*00002.bin cannot be read", base, *delta)


def test_an_adapter_of_another_base_is_refused(index, sids, base, tmp_path):
    """Same width, other layers: nothing may be merged in part."""
    write_adapter(tmp_path / "adapter", base, index)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)
    save_file(weights, file, metadata={"format": "pt"})
    given = [
        "--base_model",
        base,
        "--sid_dir",
        sids,
        "--prompt_pack",
        "chat",
        "--adapter",
        tmp_path / "adapter",
    ]
    with pytest.raises(InputError, match="does not fit the adapter .*layers.7.*no such tensor for the base"):
        merge.main([str(argument) for argument in [*given, "--output_dir", tmp_path / "out"]])


def test_flags_that_do_not_go_together(sids, tmp_path, base, index):
    write_adapter(tmp_path / "adapter", base, index)
    for flags, message in (
        ([], "adapter: is missing"),
        (["--adapter", tmp_path / "adapter"], "is no run of sft.train; .*give --base_model, --sid_dir and"),
        (["--adapter", tmp_path / "adapter", "--sid_dir", sids], "sid_dir: .* goes with --base_model"),
    ):
        with pytest.raises(InputError, match=message):
            merge.main([str(flag) for flag in [*flags, "--output_dir", tmp_path / "out"]])


@pytest.mark.parametrize("flag", ["use_dora", "use_rslora"])
def test_lora_variants_reach_peft_and_merge(index, sids, base, tmp_path, flag):
    flags = ["--max_steps", 2, "--save_strategy", "no", "--learning_rate", 0.01]
    options = json.dumps({"r": 4, "alpha": 6, flag: True})
    run_sft(sids, tmp_path / "sft", "--model_name_or_path", base, "--lora", options, *flags)
    assert json.loads((tmp_path / "sft" / "trained" / "adapter_config.json").read_text())[flag] is True
    extended = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft" / "base")
    start = logits(extended, tokenizer)
    wrapped = PeftModel.from_pretrained(extended, tmp_path / "sft" / "trained")
    layer = wrapped.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == (6 / 4**0.5 if flag == "use_rslora" else 6 / 4)
    assert bool(layer.lora_magnitude_vector) == (flag == "use_dora")
    merge.main(["--adapter", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "model")])
    merged = logits(Recommender.load(tmp_path / "model").model, tokenizer)
    torch.testing.assert_close(merged, logits(wrapped, tokenizer), rtol=1e-4, atol=1e-5)
    assert (merged - start).abs().max() > 1e-2
