"""Search engines over the item texts that a model is ranked beside: BM25 and a sentence encoder.

Both score the whole catalogue exactly. Legend: C cases, N items, K places, d dimensions.
"""

import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from tqdm import tqdm

from serve.evaluation.search import LIST_SIZE, SearchCases, SearchLists
from sid_builder.embedders.model_files import ModelFiles, choose_device
from sid_builder.errors import InputError
from sid_builder.sid_index import SidIndex

BM25, DENSE = "bm25", "dense"
BM25_OPTIONS = {"method": "lucene", "k1": 1.5, "b": 0.75}
_QUERIES_AT_ONCE = 512


def check_engines(encoder: str) -> None:
    """InputError when a library of the engines is not installed, or the encoder is not there."""
    for module, extra in (("bm25s", "search"), ("Stemmer", "search"), ("sentence_transformers", "embed")):
        if find_spec(module) is None:
            raise InputError(f"{module}: is not installed; pip install 'sidereal[{extra}]'")
    ModelFiles.find(encoder, field="encoder")


def bm25_scores(item_texts: Sequence[str], queries: Sequence[str]) -> Iterator[np.ndarray]:
    """float32 [N] per query: Lucene's BM25 with English stop words and stemming, by bm25s."""
    import bm25s
    import Stemmer

    reading = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    engine = bm25s.BM25(**BM25_OPTIONS)
    engine.index(bm25s.tokenize(list(item_texts), return_ids=False, **reading), show_progress=False)
    for words in bm25s.tokenize(list(queries), return_ids=False, **reading):
        known = [word for word in words if word in engine.vocab_dict]
        yield engine.get_scores(known) if known else np.zeros(len(item_texts), dtype=np.float32)


def dense_scores(
    item_texts: Sequence[str], queries: Sequence[str], encoder: str, device: str | None
) -> Iterator[np.ndarray]:
    """float32 [N] per query: cosine of the encoder's vectors, with its own prompts for queries and documents
    where it has any.
    """
    from sentence_transformers import SentenceTransformer

    model: Any = ModelFiles.find(encoder, field="encoder").load(
        SentenceTransformer, device=choose_device(device)
    )
    options = {"batch_size": 64, "normalize_embeddings": True, "convert_to_numpy": True}
    items_Nd = model.encode_document(list(item_texts), show_progress_bar=None, **options)
    for first in range(0, len(queries), _QUERIES_AT_ONCE):
        block = list(queries[first : first + _QUERIES_AT_ONCE])
        yield from model.encode_query(block, show_progress_bar=False, **options) @ items_Nd.T


def engine_lists(name: str, scores: Iterator[np.ndarray], cases: SearchCases, index: SidIndex) -> SearchLists:
    """The best items of every case, ties by item_index, without what is excluded or off the shelf."""
    started = time.monotonic()
    items_CK = np.full((len(cases), LIST_SIZE), -1, dtype=np.int64)
    bar = tqdm(scores, total=len(cases), desc=name, unit="request", mininterval=1.0, disable=None)
    for case, scores_N in enumerate(bar):
        allowed_N = index.live_N.copy()
        allowed_N[cases.excluded(case)] = False
        allowed = np.flatnonzero(allowed_N)
        best = allowed[np.argsort(-scores_N[allowed], kind="stable")[:LIST_SIZE]]
        items_CK[case, : len(best)] = best
    return SearchLists(items_CK, time.monotonic() - started)
