"""Texts that do not fit in a prompt: cut at a word's end, alike in every way of asking; answers never."""

import dataclasses
import warnings

import numpy as np
import pytest

from prompts.budget import beginning, largest, warn_of_cuts
from prompts.pack import PromptPack, Template
from prompts.template import PromptTemplate
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from tests.builders import make_index, make_tokenizer

LONG, ENDLESS, SHORT = 3, 4, 5
TASKS = {
    "title2sid": [Template("Find {title}!", "{sid}")],
    "sid2title": [Template("{sid} is", "{title}")],
    "item2index": [Template("{title} / {description} / {price}", "{sid}")],
    "title_history2sid": [Template("After {history_titles}:", "{sid}")],
    "sid_history2title": [Template("{history_sids} then", "{title}")],
    "itemsearch": [Template("{query}", "{sid}"), Template("{history_sids} now {query}", "{sid}")],
    "preference2sid": [Template("{preference}: {history_sids}", "{sid}")],
}


@pytest.fixture(scope="module")
def whole() -> PromptTemplate:
    """A title of 300 words, one of 900 characters without a blank; every prompt fits."""
    codes = np.random.default_rng(2).permutation(np.unique(np.indices((4, 4, 4)).reshape(3, -1).T, axis=0))
    plain = make_index(codes[:20], (4, 4, 4))
    rows = [plain.catalog.row(item) for item in range(20)]
    rows[LONG]["title"] = " ".join(f"word{number}" for number in range(300))
    rows[LONG]["description"], rows[LONG]["price"] = "short and sweet", 12.5
    rows[ENDLESS]["title"] = "".join(chr(ord("a") + number * 7 % 26) for number in range(900))
    rows[SHORT]["description"], rows[SHORT]["price"] = "many words of it " * 10, 3.0
    index = dataclasses.replace(plain, catalog=Catalog.from_rows(rows))
    pack = PromptPack.load("plain")
    pack = dataclasses.replace(pack, tasks={**pack.tasks, **TASKS}, max_prompt_tokens=10_000)
    return PromptTemplate(pack, make_tokenizer(plain), index)


def within(template: PromptTemplate, budget: int) -> PromptTemplate:
    pack = dataclasses.replace(template.pack, max_prompt_tokens=budget)
    return PromptTemplate(pack, template.tokenizer, template.index)


def said(template: PromptTemplate, rendered) -> str:
    return template.tokenizer.decode(rendered.prompt_ids)


@pytest.mark.parametrize(
    ("text", "most", "kept"),
    [
        ("red trail shoes", 15, "red trail shoes"),
        ("red trail shoes", 14, "red trail"),
        ("red trail shoes", 9, "red trail"),
        ("red trail shoes", 8, "red"),
        ("red  trail", 4, "red"),
        ("red\u3000trail", 5, "red"),
        ("trail", 3, "tra"),
        (" trail", 3, " tr"),
        ("", 1, ""),
    ],
)
def test_beginning_ends_at_a_word_where_it_can(text, most, kept):
    assert beginning(text, most) == kept


def test_largest_is_found_wherever_it_lies():
    for limit in range(1, 12):
        assert largest(1, 11, lambda number, limit=limit: number <= limit) == limit
    assert largest(5, 5, lambda number: False) == 5 and largest(1, 9, lambda number: False) == 1


def test_a_long_title_is_cut_to_the_last_word_that_fits(whole):
    tight, title = within(whole, 80), whole.index.catalog.titles[LONG]
    rendered = tight.render("title2sid", LONG)
    kept = said(tight, rendered).removeprefix("Find ").partition("!")[0]
    assert title.startswith(kept + " ") and len(kept.split()) > 3
    one_more = title[: title.index(" ", len(kept) + 1)]
    frame = whole.pack.templates("title2sid")[0].user
    assert len(rendered.prompt_ids) <= 80 < len(whole.encode_prompt(frame.format(title=one_more)))
    assert rendered.cut_from == len(whole.render("title2sid", LONG).prompt_ids) > 80
    assert rendered.completion_ids == whole.render("title2sid", LONG).completion_ids
    assert not whole.render("title2sid", LONG).cut_from and not tight.render("title2sid", SHORT).cut_from


def test_every_way_of_asking_cuts_alike(whole):
    """RL and clients send the words, which are framed and encoded by others; evaluation takes the ids."""
    tight, preference = within(whole, 80), "likes it " * 100
    wording, history = tight.pack.templates("preference2sid")[0], [7, 8, 9]
    prompt = tight.fitted(wording, history, fields={"preference": preference})
    assert prompt.text == tight.user_text(wording, history, fields={"preference": preference})
    assert prompt.ids == tight.encode_prompt(prompt.text) and len(prompt.ids) <= 80
    assert prompt.ids == tight.prompt("preference2sid", history, preference=preference)
    rendered = tight.render("preference2sid", 2, history, preference=preference)
    assert (rendered.prompt_ids, rendered.cut_from) == (prompt.ids, prompt.cut_from)
    assert prompt.text.endswith(f"likes it: {tight.spell_history([9])}"), "the oldest items have gone first"


def test_the_longest_text_is_cut_first(whole):
    tight = within(whole, 90)
    text = said(tight, tight.render("item2index", LONG))
    assert "word9 " in text and "/ short and sweet / 12.50" in text
    text = said(tight, tight.render("item2index", SHORT))
    title = tight.index.catalog.titles[SHORT]
    assert text.startswith(f"{title} / many words of it many") and " / 3.00" in text


def test_a_title_without_blanks_is_cut_inside(whole):
    tight = within(whole, 60)
    rendered = tight.render("title2sid", ENDLESS)
    kept = said(tight, rendered).removeprefix("Find ").partition("!")[0]
    assert whole.index.catalog.titles[ENDLESS].startswith(kept) and len(kept) > 20
    assert 55 < len(rendered.prompt_ids) <= 60


def test_a_history_loses_its_oldest_titles_before_the_newest_is_cut(whole):
    tight = within(whole, 80)
    rendered = tight.render("title_history2sid", 2, [SHORT, 7, LONG])
    text = said(tight, rendered)
    assert text.startswith("After word0 word1 ") and "Thing" not in text
    assert len(rendered.prompt_ids) <= 80 < rendered.cut_from
    newest_fits = said(tight, tight.render("title_history2sid", 2, [LONG, 7, SHORT]))
    assert "word0" not in newest_fits and newest_fits.count("Thing") == 2


def test_answers_are_never_cut(whole):
    tight = within(whole, 30)
    for task, history in (("sid2title", ()), ("sid_history2title", [1, 2])):
        answer = tight.render(task, LONG, history).completion_ids
        assert whole.index.catalog.titles[LONG] in tight.tokenizer.decode(answer)


def test_what_may_not_be_cut_is_an_error(whole):
    frame = len(whole.encode_prompt("Find !"))
    with pytest.raises(InputError, match="max_prompt_tokens: 2 is too small for the wording 'Find {title}!'"):
        within(whole, 2).render("title2sid", LONG)
    assert within(whole, frame + 2).render("title2sid", LONG).cut_from
    with pytest.raises(InputError, match="max_prompt_tokens: 60 .* what was said before") as caught:
        within(whole, 60).render("itemsearch", 2, [3], 1, [("words " * 80, 1)], query="cheaper")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="max_prompt_tokens: 4 is too small"):
        within(whole, 4).render("sid_history2title", 2, [3])


def test_one_warning_counts_what_was_cut():
    with pytest.warns(UserWarning) as caught:
        warn_of_cuts([0, 700, 0, 1300], 256)
    (warning,) = caught
    assert "max_prompt_tokens: 2 prompt(s) were over 256 tokens, the longest took 1,300" in str(
        warning.message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cuts([0, 0], 256)
