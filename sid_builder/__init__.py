"""Raw data -> catalogue, interactions, item embeddings, semantic IDs, trie, quality report."""

# Each registry maps a name to `module:Thing`, imported when asked for; any such path from outside is accepted
# as well.
SOURCES = {
    "toy": "sid_builder.sources.toy:load",
    "jsonl": "sid_builder.sources.jsonl:load",
    "minionerec": "sid_builder.sources.minionerec:load",
}

EMBEDDERS = {
    "tfidf_svd": "sid_builder.embedders.tfidf_svd:TfidfSvd",
    "sentence_transformer": "sid_builder.embedders.sentence_transformer:SentenceTransformerEmbedder",
    "precomputed": "sid_builder.embedders.precomputed:Precomputed",
}

QUANTIZERS = {
    "rq_kmeans": "sid_builder.quantizers.rq_kmeans:RQKMeans",
}
