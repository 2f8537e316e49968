"""TF-IDF of words and word pairs, reduced by a truncated SVD: embeddings without any model to download."""

from dataclasses import dataclass, field

import numpy as np

from sid_builder.embedders import ItemData, check_positive
from sid_builder.errors import InputError


@dataclass(frozen=True)
class TfidfSvdConfig:
    """Latent semantic analysis of the item texts."""

    dim: int = field(
        default=128, metadata={"help": "Size of the embedding; below the number of distinct terms."}
    )
    max_ngram: int = field(default=2, metadata={"help": "Longest run of words counted as a term."})
    min_items: int = field(default=2, metadata={"help": "A term must occur in at least this many items."})


class TfidfSvd:
    """Fitted on the texts it encodes; deterministic by seed."""

    def __init__(self, config: TfidfSvdConfig, seed: int = 0) -> None:
        check_positive(dim=config.dim, max_ngram=config.max_ngram, min_items=config.min_items)
        self.config = config
        self.seed = seed

    def encode(self, items: ItemData) -> np.ndarray:
        """Embeddings float32 [N, dim], rows scaled by the singular values (not normalised).

        Raises:
            InputError: if the texts have too few terms, or fewer than `dim + 1`.
        """
        # scikit-learn takes a second to import, so a wrong argument is reported before it.
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        config = self.config
        vectorizer = TfidfVectorizer(
            ngram_range=(1, config.max_ngram), min_df=config.min_items, sublinear_tf=True, dtype=np.float32
        )
        try:
            weights_NV = vectorizer.fit_transform(items.texts)
        except ValueError as error:
            raise InputError(
                f"embedder: 'tfidf_svd' found no terms in the item texts ({error}); check text_template"
            ) from error
        most = min(weights_NV.shape) - 1
        if config.dim > most:
            raise InputError(
                f"embedder_args.dim: {config.dim} is too large for {weights_NV.shape[0]} items with "
                f"{weights_NV.shape[1]} terms; give at most {most}"
            )
        svd = TruncatedSVD(config.dim, random_state=self.seed)
        return svd.fit_transform(weights_NV).astype(np.float32)
