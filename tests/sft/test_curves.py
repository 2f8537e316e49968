"""Curves of a training run: what the picture shows, and trackers that are not there."""

import importlib.util
import re
from types import SimpleNamespace

import pytest

from sft import curves
from sft.curves import check_report_to, plot_history
from sid_builder.errors import InputError

HISTORY = [
    *({"step": step, "loss": 5.0 - step, "learning_rate": 0.1, "grad_norm": 1.0} for step in (1, 2, 3)),
    {"step": 2, "eval_loss": 3.5, "eval_ndcg@10": 0.2, "eval_hr@10": 0.4, "eval_runtime": 3.0, "epoch": 1.0},
    {"step": 3, "eval_loss": 3.0, "eval_ndcg@10": 0.1, "eval_hr@10": 0.5, "eval_samples_per_second": 9.0},
    {"step": 3, "train_runtime": 12.0, "train_loss": 4.0, "alone": 1.0, "reward": 2.0},
    {"step": 4, "reward": 3.0, "note": "text"},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were closed, axes by title."""
    import matplotlib.pyplot as plt

    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    yield lambda: {axis.get_title(): axis for axis in figures[-1].axes if axis.get_visible()}
    monkeypatch.undo()
    for figure in figures:
        plt.close(figure)


def test_what_belongs_together_is_drawn_together(drawn, tmp_path):
    plot_history(HISTORY, tmp_path / "curves.png", "a run", best_step=2)
    axes = drawn()
    assert list(axes) == ["Loss", "Valid ranking", "Learning rate", "Gradient norm", "reward"]
    lines = {line.get_label(): line for line in axes["Loss"].get_lines()}
    assert lines["train"].get_xydata().tolist() == [[1, 4], [2, 3], [3, 2]]
    assert lines["valid"].get_xydata().tolist() == [[2, 3.5], [3, 3]]
    ranking = [line.get_label() for line in axes["Valid ranking"].get_lines()]
    assert ranking == ["NDCG@10", "HR@10", "best step: 2"]
    assert set(axes["Valid ranking"].get_lines()[-1].get_xdata()) == {2}
    assert axes["reward"].get_lines()[0].get_xydata().tolist() == [[3, 2], [4, 3]]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_history_of_one_point_is_no_curve(drawn, tmp_path):
    plot_history(HISTORY[:1], tmp_path / "curves.png", "a run")
    assert not drawn() and (tmp_path / "curves.png").exists()


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda package: None if package == "trackio" else object())
    check_report_to(SimpleNamespace(report_to=["tensorboard", "wandb", "my_own"]))
    with pytest.raises(InputError, match="report_to: 'trackio' is not installed; pip install trackio"):
        check_report_to(SimpleNamespace(report_to=["tensorboard", "trackio"]))


@pytest.mark.skipif(
    not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))), reason="tensorboard is missing"
)
def test_tensorboard_gets_the_figures_of_valid(tmp_path):
    import numpy as np

    from sft import train
    from tests.builders import make_index
    from tests.sft.builders import make_interactions, write_sids

    index = make_index(np.stack(np.unravel_index(np.arange(40), (8, 8)), axis=1), (8, 8))
    sids = write_sids(tmp_path / "sids", index, make_interactions(40))
    scratch = '{"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64}'
    words = ["--sid_dir", sids, "--output_dir", tmp_path / "run", "--from_scratch", scratch]
    words += ["--training", "full", "--prompt_pack", "plain", "--use_cpu", "true", "--bf16", "false"]
    words += ["--max_steps", 1, "--valid_cases", 8, "--report_to", "tensorboard", "--eval_on_start", "true"]
    train.main([str(word) for word in words])
    logged = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("events.out.*"))
    for name in (rb"eval/ndcg.10", rb"eval/hr.10", rb"eval/loss"):  # tensorboardX writes _ for @
        assert re.search(name, logged)
