"""Rounds: what goes into the next one, what is kept, going on where a run was cut off, bad input."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file

from rl import improve
from rl.rounds import Round, draw, table
from serve.decoding.recommender import Recommender
from sid_builder.artifact import hash_inputs, open_artifact
from sid_builder.errors import InputError
from tests.rl.dpo_cases import dpo_flags

STEPS = ["--max_steps", "3", "--num_beams", "8", "--learning_rate", "1e-3", "--valid_cases", "40"]


def flags(model_dir, output_dir, *more: str) -> list[str]:
    return dpo_flags(model_dir, output_dir, *STEPS, *more)


def weights(model_dir):
    return load_file(model_dir / "model.safetensors")["model.embed_tokens.weight"]


@pytest.fixture(scope="module")
def improved(model_dir, tmp_path_factory):
    """Two rounds of S-DPO, judged by the truth."""
    output = tmp_path_factory.mktemp("improved") / "run"
    more = ["--rounds", "2", "--loss_type", "s_dpo", "--negatives", '{"beam": 2, "random": 1}']
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "5"]
    improve.main(flags(model_dir, output, *more, *saving, "--load_best_model_at_end", "false"))
    return output, [*more, *saving, "--load_best_model_at_end", "false"]


def test_a_round_starts_where_the_last_one_ended(model_dir, improved):
    output, _ = improved
    found = [json.loads((output / f"round-{n}" / "manifest.json").read_text()) for n in (1, 2)]
    inputs = [entry["inputs"]["model"]["sha256"] for entry in found]
    starts = (model_dir, output / "round-1" / "model")
    assert inputs == [hash_inputs({"model": path})["model"]["sha256"] for path in starts]
    made = [open_artifact(output / f"round-{n}.preferences", "preferences") for n in (1, 2)]
    assert [one.manifest["inputs"]["model"]["sha256"] for one in made] == inputs
    assert [one.manifest["seeds"] for one in made] == [{"seed": 42}, {"seed": 43}]  # TRL's seed
    texts = [(one.path / "sample.md").read_text() for one in made]
    assert texts[0] != texts[1]


def test_what_a_run_leaves(improved, model_dir):
    output, _ = improved
    open_artifact(output, "improve").verify_hashes()
    rounds = json.loads((output / "rounds.json").read_text())
    assert [done["number"] for done in rounds] == [1, 2]
    page = (output / "rounds.md").read_text()
    for done in rounds:
        assert f"| {done['number']} | 40 | {done['after']['ndcg@10']:.4f}" in page
    assert rounds[1]["before"]["ndcg@10"] == pytest.approx(rounds[0]["after"]["ndcg@10"])
    assert (output / "rounds.png").stat().st_size > 1000
    kept = [done["number"] for done in rounds if done["kept"]]
    expected = output / f"round-{kept[-1]}" / "model" if kept else model_dir
    assert (weights(output / "model") == weights(expected)).all()
    assert not (weights(output / "model") == weights(model_dir)).all()
    Recommender.load(output / "model", device="cpu")
    overall = json.loads((output / "acceptance.json").read_text())
    assert overall["differences"]["ndcg@10"]["before"] >= 0


def test_a_run_that_was_cut_off_goes_on(model_dir, improved, tmp_path):
    """In its second round, behind the second step: as if nothing had happened. And on to a third round."""
    output, more = improved
    cut = tmp_path / "cut"
    shutil.copytree(output, cut)
    for name in ("manifest.json", "rounds.json", "rounds.md", "rounds.png", "acceptance.json"):
        (cut / name).unlink()
    for name in ("model", "checkpoint-3"):
        shutil.rmtree(cut / "round-2" / name)
    shutil.rmtree(cut / "model")
    (cut / "round-2" / "manifest.json").unlink()
    written = (cut / "round-1" / "manifest.json").stat().st_mtime_ns
    resume = ["--resume_from_checkpoint", "true"]
    improve.main(flags(model_dir, cut, *more, *resume))
    assert (cut / "round-1" / "manifest.json").stat().st_mtime_ns == written
    for name in ("round-2/model", "model"):
        assert (weights(cut / name) == weights(output / name)).all()
    assert (cut / "rounds.json").read_text() == (output / "rounds.json").read_text()
    improve.main(flags(model_dir, cut, *more, *resume, "--rounds", "3"))
    assert [done["number"] for done in json.loads((cut / "rounds.json").read_text())] == [1, 2, 3]
    with pytest.raises(InputError, match="learning_rate: 0.5, but the run of .* was begun with 0.001"):
        improve.main(flags(model_dir, cut, *more, *resume, "--learning_rate", "0.5"))


def spoil(model_dir, output, monkeypatch, hurt, *more):
    """Rounds in which those named in `hurt` are found to have hurt; the table."""
    of = Round.of

    def found(number, run):
        return dataclasses.replace(of(number, run), kept=number not in hurt)

    monkeypatch.setattr(Round, "of", staticmethod(found))
    improve.main(flags(model_dir, output, "--max_steps", "1", *more))
    return json.loads((output / "rounds.json").read_text())


def start_of(output, number):
    manifest = json.loads((output / f"round-{number}" / "manifest.json").read_text())
    return manifest["inputs"]["model"]["sha256"]


def test_rounds_end_where_one_hurts(model_dir, tmp_path, monkeypatch):
    rounds = spoil(model_dir, tmp_path / "run", monkeypatch, {2}, "--rounds", "4")
    assert [done["kept"] for done in rounds] == [True, False]
    first = weights(tmp_path / "run" / "round-1" / "model")
    assert (weights(tmp_path / "run" / "model") == first).all()
    assert open_artifact(tmp_path / "run", "improve").summary["kept"] == [1]


@pytest.mark.slow
def test_rounds_go_on_from_the_last_that_was_kept(model_dir, tmp_path, monkeypatch):
    output = tmp_path / "run"
    more = ["--rounds", "3", "--when_hurt", "retry", "--max_prompts", "20"]
    rounds = spoil(model_dir, output, monkeypatch, {1}, *more)
    assert [done["kept"] for done in rounds] == [False, True, True]
    assert start_of(output, 1) == start_of(output, 2) != start_of(output, 3)
    pages = [(output / f"round-{n}.preferences" / "sample.md").read_text() for n in (1, 2)]
    assert pages[0] != pages[1]  # the same model, asked about other histories
    monkeypatch.undo()
    improve.main(flags(model_dir, output, "--max_steps", "1", "--rounds", "1", "--overwrite", "true"))
    assert not (output / "round-2").exists() and not (output / "round-3.preferences").exists()


def test_a_reward_judges_the_beams_of_every_round(model_dir, tmp_path):
    output = tmp_path / "run"
    judged = ["--rewards", '{"popularity": 1.0}', "--negatives", '{"beam": 2}', "--training", "lora"]
    improve.main(flags(model_dir, output, *judged, "--rounds", "1", "--max_steps", "1"))
    page = (output / "round-1.preferences" / "sample.md").read_text()
    assert "rank" in page and "not in the beam" not in page
    history = json.loads((output / "round-1" / "log_history.json").read_text())
    assert history[-1]["train_loss"] == pytest.approx(np.log(2), abs=1e-3)


def done(number, after, interval, verdict, kept=True):
    values = {"ndcg@10": after, "hr@10": 0.2, "hr@50": 0.5}
    return Round(number, 10, {**values, "ndcg@10": 0.1}, values, interval, verdict, kept)


def test_the_table_and_the_picture_say_what_happened(tmp_path):
    rounds = [done(1, 0.15, (0.01, 0.09), "helped"), done(2, 0.05, (-0.08, -0.02), "hurt", kept=False)]
    lines = table(rounds)
    assert lines[2].startswith("| start | | 0.1000 | 0.2000 | 0.5000 |")
    assert lines[3] == ("| 1 | 10 | 0.1500 | 0.2000 | 0.5000 | +0.0500 (+0.0100 .. +0.0900) | helped | yes |")
    assert lines[4].endswith("| -0.0500 (-0.0800 .. -0.0200) | hurt | no |")
    draw(rounds, tmp_path / "rounds.png", "improve run")
    assert (tmp_path / "rounds.png").stat().st_size > 1000


@pytest.mark.parametrize(("lowered", "kept"), [("ndcg@10", False), ("hr@50", False), ("hr@10", True)])
def test_a_round_is_kept_unless_what_is_guarded_has_clearly_fallen(improved, tmp_path, lowered, kept):
    output, _ = improved
    shutil.copytree(output / "round-1", tmp_path / "round-1")
    shutil.copytree(output / "round-1.preferences", tmp_path / "round-1.preferences")
    path = tmp_path / "round-1" / "acceptance.json"
    content = json.loads(path.read_text())
    for name, row in content["differences"].items():
        row["interval_95"] = [-0.02, -0.01] if name == lowered else [-0.01, 0.01]
    path.write_text(json.dumps(content))
    assert Round.of(1, tmp_path / "round-1").kept is kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounds", "0"], "rounds: 0; give at least 1"),
        (["--valid_cases", "0"], "valid_cases: 0 leaves nothing to judge a round by"),
        (["--plan", "true"], "plan: rounds cost what rl.train_dpo does"),
        (["--resume_from_checkpoint", "true"], "there is no settings.json beside"),
        (["--resume_from_checkpoint", "checkpoint-2"], "resume_from_checkpoint: 'checkpoint-2', but rounds"),
        (["--loss_type", "softmax"], "loss_type: 'softmax' is not known"),
        (["--patience", "2", "--load_best_model_at_end", "false"], "patience: 2 ends a run behind its best"),
        (["--push_to_hub", "true"], "push_to_hub: a run directory holds people's interactions"),
    ],
)
def test_bad_input_leaves_nothing_behind(model_dir, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        improve.main(flags(model_dir, tmp_path / "out", *more))
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_way_is_not_emptied(model_dir, improved, tmp_path):
    with pytest.raises(InputError, match="is not empty; pass --resume_from_checkpoint"):
        improve.main(flags(model_dir, improved[0]))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no rounds of sidereal"):
        improve.main(flags(model_dir, tmp_path / "photos", "--overwrite", "true"))
    made = improved[0] / "round-1.preferences"
    with pytest.raises(InputError, match="every round makes its own"):
        improve.main(flags(model_dir, tmp_path / "out", "--preferences", str(made)))
