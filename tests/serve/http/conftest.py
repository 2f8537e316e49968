"""One server for all tests of the routes, over a tiny model of the shop."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.decoding.recommender import Recommender
from tests.serve.http.server_process import Served, serving


@pytest.fixture(scope="session")
def shop_dir(tmp_path_factory) -> tuple[Path, Recommender]:
    """A model directory over the shop, which has brands, categories, prices and items off the shelf; and the
    same, opened.
    """
    from sft.model_directory import write_model_directory
    from tests.builders import make_recommender
    from tests.sft.shop import make_shop_index

    made = make_recommender(make_shop_index())
    path = tmp_path_factory.mktemp("http") / "model"
    write_model_directory(path, made.model, made.tokenizer, made.template.pack, made.index, None)
    return path, Recommender.load(path, "cpu", "float32")


@pytest.fixture(scope="session")
def served(shop_dir, tmp_path_factory) -> Iterator[Served]:
    path, recommender = shop_dir
    log = tmp_path_factory.mktemp("served") / "log"
    limits = {"max_body_bytes": 20_000, "body_timeout_s": 1.0, "max_history": 40, "beam_width": 20}
    with serving(path, recommender, log, "--limits", json.dumps(limits)) as running:
        yield running
