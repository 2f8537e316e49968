"""What a refresh gained and what it cost, on the same cases before and after.

    kept       valid cases of the old interactions, over the old catalogue: what was forgotten
    new        valid cases that ask for a new interaction, over the new catalogue
    new_items  those of them whose target is a newly assigned item
    titles     the titles of newly assigned items, asked for their SIDs

The answers to `kept` stay out of what a refresh learns (`RefreshContext.held_out_S`), those to `titles` are
in it. The step that is kept may have been chosen by a part of `new` (`valid_cases`): the test split decides
between models, here nothing is asked of it.

Legend: C cases, c the cases of one process, K items of a list.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from prompts.template import PromptTemplate
from serve.decoding.recommender import Recommender
from serve.decoding.tree_beam import decode
from serve.evaluation.metrics import gains, hits
from serve.evaluation.model_ranking import target_ranks
from serve.evaluation.paired import RankMetrics, paired_differences
from sft.valid_ranking import attention_for_branches, rank_shared
from sid_builder.artifact import write_json
from sid_builder.interactions import Histories

REPORT_FILE, PICTURE_FILE = "refresh.json", "refresh.png"
_RANKING: RankMetrics = {"ndcg@10": (gains, 10), "hr@10": (hits, 10)}
_RECALL: RankMetrics = {"r@10": (hits, 10), "r@50": (hits, 50)}
_TITLES: RankMetrics = {"r@1": (hits, 1), "r@10": (hits, 10)}
METRICS = {"kept": _RANKING, "new": _RANKING, "new_items": _RECALL, "titles": _TITLES}
TITLES = {
    "kept": "old valid cases",
    "new": "new interactions",
    "new_items": "new items asked for",
    "titles": "titles of new items",
}
_TITLE_BEAMS, _PROMPTS_AT_ONCE = 10, 32


@dataclass(frozen=True)
class Questions:
    """What is asked; an empty set is not measured.

    Attributes:
        old_template, template: the prompt pack bound to the old and the new catalogue.
        items: newly assigned items on the shelf, int64.
    """

    old_template: PromptTemplate
    template: PromptTemplate
    kept: Histories
    new: Histories
    new_items: Histories
    items: np.ndarray

    @property
    def num_cases(self) -> int:
        """Beam searches of one `ask`."""
        return len(self.kept) + len(self.new) + len(self.new_items) + len(self.items)

    def ask(self, model: Any) -> dict[str, np.ndarray]:
        """Rank of every target (0: not in the list), int32 [C], by name. All processes call this alike."""
        template = self.template
        old = Recommender(model, template.tokenizer, self.old_template.index, self.old_template)
        now = Recommender(model, template.tokenizer, template.index, template)
        asked = {"kept": (old, self.kept), "new": (now, self.new), "new_items": (now, self.new_items)}
        with attention_for_branches(model.config):
            ranks = {
                name: rank_shared(recommender, cases, progress=True).item_rank_C
                for name, (recommender, cases) in asked.items()
            }
            return ranks | {"titles": _title_ranks(now, self.items)}


def _title_ranks(recommender: Recommender, items: np.ndarray) -> np.ndarray:
    """Ranks of items asked by title in the first wording that fits; items without a title are left out."""
    prompts, targets = [], []
    template = recommender.template
    if "title2sid" in template.pack.tasks:
        for item in items.tolist():
            wordings = template.usable_wordings("title2sid", set(template.item_fields(item)))
            if wordings:
                prompts.append(template.render("title2sid", item, wording=wordings[0]).prompt_ids)
                targets.append(item)

    def rank(own_c: np.ndarray) -> np.ndarray:
        ranks = []
        for start in range(0, len(own_c), _PROMPTS_AT_ONCE):
            block = own_c[start : start + _PROMPTS_AT_ONCE]
            lists = decode(recommender.model, [prompts[c] for c in block], recommender.trie, _TITLE_BEAMS)
            ranks += [
                target_ranks(ranking.items_K, targets[c], recommender.index.trie)[0]
                for c, ranking in zip(block, lists, strict=True)
            ]
        return np.array(ranks, dtype=np.int32)

    was_training = recommender.model.training
    recommender.model.eval()
    ranks = _shared_out(len(prompts), rank)
    recommender.model.train(was_training)
    return ranks


def _shared_out(num_cases: int, rank: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Ranks int32 [C] of all cases, each found by one of the processes."""
    state = PartialState()
    own_c = np.arange(state.process_index, num_cases, state.num_processes)
    ranks_C = np.zeros(num_cases, dtype=np.int32)
    for part_c, ranks_c in gather_object([(own_c, rank(own_c))]):
        ranks_C[part_c] = ranks_c
    return ranks_C


def compare(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Per question: number of cases and, where there are any, `paired_differences` of its metrics; and what
    they say in words.
    """
    report: dict[str, Any] = {}
    for name, metrics in METRICS.items():
        report[name] = {"cases": len(before[name])}
        if len(before[name]):
            report[name] |= paired_differences(before[name], after[name], metrics)
    return report | {"verdict": _verdict(report["new"]), "statement": _statement(report)}


def _verdict(new: Mapping[str, Any]) -> str:
    """Where the interval of the new cases' NDCG@10 difference lies: above zero, below, or on both sides."""
    if not new["cases"]:
        return "not measured"
    low, high = new["ndcg@10"]["interval_95"]
    return "helped" if low > 0 else "hurt" if high < 0 else "no clear change"


def _statement(report: Mapping[str, Any]) -> str:
    parts = [f"{_verdict(report['new'])}: {_change(report['new'], 'ndcg@10')} on new interactions"]
    if report["new_items"]["cases"]:
        parts.append(f"new items found: {_change(report['new_items'], 'r@10')}")
    kept = report["kept"]
    if kept["cases"]:
        low, high = kept["ndcg@10"]["interval_95"]
        cost = "it cost" if high < 0 else "old interactions gained as well:" if low > 0 else "no clear cost:"
        parts.append(f"{cost} {_change(kept, 'ndcg@10')} on old valid cases")
    else:
        parts.append("what it cost was not measured")
    return "; ".join(parts)


def _change(question: Mapping[str, Any], metric: str) -> str:
    if not question["cases"]:
        return f"{metric.upper()} not measured"
    row = question[metric]
    low, high = row["interval_95"]
    return (
        f"{metric.upper()} {row['before']:.4f} -> {row['after']:.4f} "
        f"({row['difference']:+.4f}, 95 % {low:+.4f} .. {high:+.4f})"
    )


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| asked | cases | metric | before | after | after - before (95 %) |",
        "|---|---:|---|---:|---:|---|",
    ]
    for name, metrics in METRICS.items():
        cases = report[name]["cases"]
        for metric in metrics if cases else ():
            row = report[name][metric]
            low, high = row["interval_95"]
            lines.append(
                f"| {TITLES[name]} | {cases} | {metric.upper()} | {row['before']:.4f} | {row['after']:.4f} | "
                f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}] |"
            )
    return "\n".join(lines)


def write(report: Mapping[str, Any], directory: Path) -> None:
    """Write `refresh.json` and `refresh.png`."""
    write_json(directory / REPORT_FILE, report)
    _picture(report, directory / PICTURE_FILE)


def _picture(report: Mapping[str, Any], path: Path) -> None:
    """Bars of each question's first metric, before and after, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [name for name in METRICS if report[name]["cases"]]
    figure = Figure(figsize=(1.5 + 2.3 * max(1, len(measured)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Sequence[Any] = figure.subplots(1, max(1, len(measured)), squeeze=False)[0]
    for axis, name in zip(axes, measured, strict=False):
        metric = next(iter(METRICS[name]))
        row = report[name][metric]
        bars = axis.bar(["before", "after"], [row["before"], row["after"]], color=["#b8bcc4", "#2f6f9f"])
        axis.bar_label(bars, fmt="%.4f", fontsize=8, padding=2)
        axis.set_title(f"{TITLES[name]}\n{metric.upper()}, {report[name]['cases']} cases", fontsize=9)
        axis.set_ylim(0, max(row["before"], row["after"], 1e-3) * 1.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"Refresh: {report['verdict']}", fontsize=11)
    figure.savefig(path, dpi=130)
