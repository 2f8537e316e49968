"""`prompts.show`: what a pack makes of real items, to hold against prompts one has."""

import ast
import re

import pytest

from prompts import show
from prompts.pack import PromptPack
from prompts.template import PromptTemplate
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex
from tests.sft.builders import make_interactions, write_checkpoint, write_sids
from tests.sft.shop import NUM_ITEMS, make_shop_index


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A base checkpoint that has never seen an SID, and a SID directory."""
    root = tmp_path_factory.mktemp("show")
    index = make_shop_index(pattern="[{letter}:{code}]")
    write_sids(root / "sids", index, make_interactions(NUM_ITEMS))
    write_checkpoint(root / "base", index)
    return root


def run(paths, capsys, *argv):
    show.main(["--tokenizer", str(paths / "base"), "--sid_dir", str(paths / "sids"), *argv])
    return capsys.readouterr().out.splitlines()


def test_literals_and_ids_are_what_training_reads(paths, capsys):
    from transformers import AutoTokenizer

    from sft.vocabulary import extend_tokenizer

    lines = run(paths, capsys, "--prompt_pack", "instruction", "--task", "seqrec", "--n", "2")
    pack = PromptPack.load("instruction")
    assert len(lines) == 2 * 5 * len(pack.tasks["seqrec"])
    index = SidIndex.load(paths / "sids" / "sid_index")
    tokenizer = AutoTokenizer.from_pretrained(paths / "base")
    extend_tokenizer(tokenizer, index.semantic_ids)
    template = PromptTemplate(pack, tokenizer, index)
    cases = list(show.train_cases(paths / "sids", index))[:2]
    for number, (history, item) in enumerate(cases * len(pack.tasks["seqrec"])):
        wording = number // 2
        head, prompt, answer, prompt_ids, answer_ids = lines[5 * number : 5 * number + 5]
        kind = "held out" if wording > 2 else "trained"
        assert head == f"seqrec, wording {wording} ({kind}), item {index.catalog.item_ids[item]!r}"
        rendered = template.render("seqrec", item, history, wording)
        assert ast.literal_eval(prompt_ids.split("ids ")[1].strip()) == rendered.prompt_ids
        assert ast.literal_eval(answer_ids.split("ids ")[1].strip()) == rendered.completion_ids
        asked = ast.literal_eval(prompt.removeprefix("  prompt").strip())
        assert asked == tokenizer.decode(rendered.prompt_ids) and asked.startswith("## Task\n")
        said = ast.literal_eval(answer.removeprefix("  answer").strip())
        assert said == index.semantic_ids.spell(item) + "\n" + tokenizer.eos_token


def test_every_task_of_a_pack_is_shown(paths, capsys):
    lines = run(paths, capsys, "--prompt_pack", "chat", "--words", "a blue coat")
    pack = PromptPack.load("chat")
    heads = [re.match(r"(\w+), wording (\d+)", line) for line in lines if not line.startswith(" ")]
    shown = [(head[1], int(head[2])) for head in heads]
    assert shown == [(task, n) for task, templates in pack.tasks.items() for n in range(len(templates))]
    assert sum("a blue coat" in line for line in lines) > 20


def test_a_wording_that_no_item_fills_says_so(paths, capsys, tmp_path):
    index = make_shop_index(described=False)
    write_sids(tmp_path / "sids", index, make_interactions(NUM_ITEMS))
    show.main(
        ["--tokenizer", str(paths / "base"), "--sid_dir", str(tmp_path / "sids"), "--task", "index2item"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "index2item, wording 2 (trained): no item looked at has all of ['description', 'sid']" in lines


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--n", "0"], "n: 0; show at least 1"),
        (["--sid_dir", "nowhere"], "sid_dir: 'nowhere' holds no sid_index/"),
        (["--tokenizer", "nowhere/at/all"], "tokenizer: 'nowhere/at/all' cannot be opened"),
        (["--task", "seqrek"], "task: 'seqrek' has no templates"),
        (["--prompt_pack", "nowhere"], "prompt_pack: 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(paths, capsys, argv, words):
    with pytest.raises(InputError, match=words) as caught:
        run(paths, capsys, *argv)
    assert "\n" not in str(caught.value)
