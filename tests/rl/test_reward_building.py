"""Rewards by name or path, their options, what they are given, and the command that uses them."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

from rl import train_grpo
from rl.arguments import GRPOArguments
from rl.rewards.building import bound_rewards, build_reward, check_rewards, warn_of_lost_ranks
from rl.rewards.completions import Completions
from serve.decoding.recommender import Recommender
from sid_builder import cli
from sid_builder.artifact import writing
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sid_index import SidIndex
from tests.rl.reward_cases import make_completions, make_index, make_interactions, save_sasrec

HERE = "tests.rl.test_reward_building"


def longest(completions: Completions, _unused: int = 0) -> np.ndarray:
    """A user's own plain function."""
    return (completions.codes_CL >= 0).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class NearOptions:
    """A user's own options."""

    scale: float
    level: int = 0


class Near:
    """A user's own class."""

    def __init__(self, options: NearOptions, index: SidIndex, train: Interactions) -> None:
        self.options, self.index, self.train = options, index, train

    def __call__(self, completions: Completions) -> np.ndarray:
        level = self.options.level
        same = completions.codes_CL[:, level] == completions.target_codes_CL[:, level]
        return same * self.options.scale


def near(options: NearOptions, index: SidIndex, train: Interactions) -> Near:
    """A user's own factory."""
    return Near(options, index, train)


class NoOptions:
    def __init__(self, index: SidIndex) -> None:
        pass


class Unannotated:
    def __init__(self, options, index, train) -> None:
        pass


instance = Near(NearOptions(7.0), make_index(), make_interactions())
number = 3


@pytest.fixture(scope="module")
def index():
    return make_index()


@pytest.fixture(scope="module")
def train():
    return make_interactions().only_train()


def test_a_users_own_rewards(index, train):
    given = make_completions(index, [[5, 6, 9]], [6])
    assert build_reward(f"{HERE}:longest", {}, index, train)(given).tolist() == [3, 3, 3]
    assert build_reward(f"{HERE}:instance", {}, index, train)(given).tolist() == [7, 7, 0]
    for name in ("Near", "near"):
        reward = build_reward(f"{HERE}:{name}", {"scale": "1e1", "level": 1}, index, train)
        assert reward(given).tolist() == [0, 10, 0]
        assert reward.index is index and reward.train is train
    with pytest.raises(InputError, match=f"reward_args.{HERE}:near.scale: is missing"):
        check_rewards({f"{HERE}:near": 1.0}, {})


@pytest.mark.parametrize(
    ("weights", "reward_args", "message"),
    [
        ({}, {}, "rewards: empty"),
        ({"rle": 1.0}, {}, "rewards: 'rle' is not known"),
        ({"rule": 1.0}, {"semantic": {}}, r"reward_args.semantic: is not one of rewards \['rule'\]"),
        ({"rule": 1.0}, {"rule": {"scale": 2}}, "reward_args.rule: {'scale': 2} have no effect"),
        (
            {"prefix": 1.0},
            {"prefix": {"weigths": [1]}},
            "prefix.weigths: unknown key; did you mean 'weights'",
        ),
        ({"prefix": 1.0}, {"prefix": {"weights": "x"}}, "prefix.weights: 'x' is not a list"),
        ({"prefix": 1.0}, {"prefix": {"weights": [0, -1]}}, r"prefix.weights: \[0.0, -1.0\]; give numbers"),
        ({"prefix": 1.0}, {"prefix": {"weights": [0, 0]}}, r"prefix.weights: \[0.0, 0.0\]; give numbers"),
        ({"prefix": 1.0}, {"prefix": {"weights": []}}, r"prefix.weights: \[\]; give numbers"),
        ({"semantic": 1.0}, {}, "reward_args.semantic.embeddings: is missing"),
        (
            {"semantic": 1.0},
            {"semantic": {"embeddings": "no/x.npy"}},
            "semantic.embeddings: no/x.npy is no fi",
        ),
        ({"collaborative": 1.0}, {"collaborative": {"sasrec": "no/x"}}, "no/x: no such directory"),
        ({"popularity": 1.0}, {"popularity": {"exponent": 0}}, "popularity.exponent: 0.0 is not above 0"),
        ({"business": 1.0}, {"business": {"column": "x", "transform": "root"}}, "business.transform: 'root'"),
        ({"rule": float("nan")}, {}, "rewards.rule: nan; give a weight of at least 0"),
        ({"rule": 1.0, "popularity": -0.3}, {}, "rewards.popularity: -0.3; give a weight"),
        ({"rule": 0.0, "format": 0.0}, {}, r"every weight of \['format', 'rule'\] is 0"),
        ({f"{HERE}:Unannotated": 1.0}, {}, "Unannotated' is neither"),
        ({f"{HERE}:make_completions": 1.0}, {}, "make_completions' is neither"),
        ({f"{HERE}:NoOptions": 1.0}, {}, "NoOptions' is neither"),
        ({f"{HERE}:number": 1.0}, {}, "number' is 3; name a function or a class"),
    ],
)
def test_bad_options_are_named(weights, reward_args, message):
    with pytest.raises(InputError, match=message):
        check_rewards(weights, reward_args)


def test_options_that_do_not_fit_the_catalogue(index, train, tmp_path):
    def refused(name, message, **options):
        with pytest.raises(InputError, match=message):
            build_reward(name, options, index, train)

    refused("prefix", "prefix.weights: 2 of them, and SIDs have 3 levels", weights=[1, 2])
    path = tmp_path / "vectors.npy"
    np.save(path, np.ones((17, 3)))
    refused("semantic", r"has shape \(17, 3\) for 18 items", embeddings=str(path))
    np.save(path, np.array(["a", "b"]))
    refused("semantic", "holds no numbers", embeddings=str(path))
    path.write_bytes(b"nothing")
    refused("semantic", "is no readable .npy file", embeddings=str(path))
    vectors = np.ones((18, 3), dtype=np.float32)
    vectors[4, 1] = np.nan
    np.save(path, vectors)
    refused("semantic", "NaN or infinite values, first for item_index 4", embeddings=str(path))
    backwards = index.catalog.table.take([*range(17, -1, -1)])
    other = dataclasses.replace(index, catalog=Catalog(backwards))
    sasrec = save_sasrec(other, tmp_path / "sasrec")
    refused("collaborative", "was trained on 18 items that are not this catalogue's", sasrec=str(sasrec))
    refused("semantic", "is no artefact of 'sids' or 'embeddings'", embeddings=str(sasrec))


def test_semantic_opens_a_sid_directory_of_the_same_items(index, train, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(18, 3)).astype(np.float32)
    backwards = [*range(17, -1, -1)]
    catalogs = {"same": index.catalog.table, "other": index.catalog.table.take(backwards)}
    for name, table in catalogs.items():
        with writing(tmp_path / name, "sids") as artifact:
            dataclasses.replace(index, catalog=Catalog(table)).save(artifact.path / "sid_index")
            np.save(artifact.path / "embeddings.npy", vectors)
    with writing(tmp_path / "given", "sids") as artifact:
        index.save(artifact.path / "sid_index")
    reward = build_reward("semantic", {"embeddings": str(tmp_path / "same")}, index, train)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    given = make_completions(index, [[5, 6]], [6])
    np.testing.assert_allclose(reward(given), [unit[5] @ unit[6], 1], rtol=1e-6)
    refused = {"other": "not the model's 18 in their order", "given": "has no embeddings.npy"}
    for name, message in refused.items():
        with pytest.raises(InputError, match=message):
            build_reward("semantic", {"embeddings": str(tmp_path / name)}, index, train)


def test_rewards_cannot_reach_valid_or_test(index):
    interactions = make_interactions()
    (bound,) = bound_rewards({f"{HERE}:Near": 1}, {f"{HERE}:Near": {"scale": 1}}, index, None, interactions)
    seen = bound.reward.train
    assert len(seen.histories("valid")) == len(seen.histories("test")) == 0
    held_out = {*interactions.histories("valid").targets_C, *interactions.histories("test").targets_C}
    assert held_out and not held_out & {*seen.items_I.tolist()}
    assert bound.exclude_history == (not interactions.has_repeats) and bound.__name__ == f"{HERE}:Near"


def test_beam_rank_alone_needs_its_scale():
    with pytest.warns(UserWarning, match="beam_rank teaches what rule does"):
        warn_of_lost_ranks({"beam_rank": 1.0, "rule": 0.5, "semantic": 0.0}, "group")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lost_ranks({"beam_rank": 1.0}, "none")
        warn_of_lost_ranks({"beam_rank": 1.0, "semantic": 0.3}, "group")
        warn_of_lost_ranks({"rule": 1.0}, "group")


def test_command_with_weighted_rewards_in_yaml(model_dir, tmp_path):
    """Every reward of the shop at once, a user's own among them; TRL logs each under its name."""
    policy = Recommender.load(model_dir, device="cpu")
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    sasrec = save_sasrec(policy.index, tmp_path / "sasrec")
    own = f"{HERE}:near"
    config = {
        "rewards": {"rule": 1.0, "semantic": 0.3, "collaborative": 0.2, "beam_rank": 0.5, own: 0.1},
        "reward_args": {
            "semantic": {"embeddings": str(tmp_path / "vectors.npy")},
            "collaborative": {"sasrec": str(sasrec), "device": "cpu"},
            own: {"scale": 2.0},
        },
    }
    (tmp_path / "grpo.yaml").write_text(json.dumps(config))
    flags = "--per_device_train_batch_size 16 --gradient_accumulation_steps 1 --num_generations 8"
    flags += " --max_steps 2 --logging_steps 1 --valid_cases 0 --save_strategy no"
    flags += f" --use_cpu true --bf16 false --disable_tqdm true --config {tmp_path / 'grpo.yaml'}"
    paths = ["--model_name_or_path", str(model_dir), "--output_dir", str(tmp_path / "out")]
    train_grpo.main([*paths, *flags.split()])
    history = json.loads((tmp_path / "out" / "log_history.json").read_text())
    steps = [row for row in history if "reward" in row]
    assert len(steps) == 2
    for row in steps:
        means = {name: row[f"rewards/{name}/mean"] for name in config["rewards"]}
        weighted = sum(weight * means[name] for name, weight in config["rewards"].items())
        assert row["reward"] == pytest.approx(weighted, abs=1e-5)
        assert 0 < means["collaborative"] < 1 and -1 <= means["semantic"] < 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["rl"]["reward_args"] == config["reward_args"]


def test_the_command_line_checks_rewards_first(model_dir, tmp_path):
    flags = ["--rewards", '{"rule": 1.0}', "--reward_args", '{"rule": {"x": 1}}']
    argv = ["--model_name_or_path", str(model_dir), "--output_dir", str(tmp_path / "out"), *flags]
    with pytest.raises(InputError, match="reward_args.rule: {'x': 1} have no effect"):
        cli.parse(GRPOArguments, argv, lazy=["nowhere:NeverImported"])
