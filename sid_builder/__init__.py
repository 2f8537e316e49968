"""Raw data -> catalogue, interactions, item embeddings, semantic IDs, trie, quality report."""

# Each registry maps a name to `module:Thing`, imported when asked for; any such path from outside is accepted
# as well.
SOURCES = {
    "toy": "sid_builder.sources.toy:load",
    "jsonl": "sid_builder.sources.jsonl:load",
    "minionerec": "sid_builder.sources.minionerec:load",
    "lcrec": "sid_builder.sources.lcrec:load",
    "recbole": "sid_builder.sources.recbole:load",
    "combined": "sid_builder.sources.combined:load",
    "amazon": "sid_builder.sources.amazon:load",
    "table": "sid_builder.sources.table:load",
}

EMBEDDERS = {
    "tfidf_svd": "sid_builder.embedders.tfidf_svd:TfidfSvd",
    "sentence_transformer": "sid_builder.embedders.sentence_transformer:SentenceTransformerEmbedder",
    "causal_lm": "sid_builder.embedders.causal_lm:CausalLmEmbedder",
    "clip_image": "sid_builder.embedders.clip_image:ClipImageEmbedder",
    "precomputed": "sid_builder.embedders.precomputed:Precomputed",
    "sasrec": "sid_builder.embedders.collaborative:SasrecEmbedder",
    "lightgcn": "sid_builder.embedders.collaborative:LightgcnEmbedder",
    "fusion": "sid_builder.embedders.fusion:FusionEmbedder",
}

QUANTIZERS = {
    "rq_kmeans": "sid_builder.quantizers.rq_kmeans:RQKMeans",
    "rqvae": "sid_builder.quantizers.rqvae:RQVAE",
    "rvq": "sid_builder.quantizers.rvq:RVQ",
    "rq_kmeans_plus": "sid_builder.quantizers.rq_kmeans_plus:RQKMeansPlus",
    "hierarchical_kmeans": "sid_builder.quantizers.hierarchical_kmeans:HierarchicalKMeans",
    "opq": "sid_builder.quantizers.opq:OPQ",
    "rq_opq": "sid_builder.quantizers.rq_opq:RQOPQ",
    "random": "sid_builder.quantizers.random_codes:RandomCodes",
}

SIGNALS = {
    "cooccurrence": "sid_builder.quantizers.signals.cooccurrence:Cooccurrence",
}

EXPORTERS = {
    "minionerec": "sid_builder.exporters.minionerec:write",
    "lcrec": "sid_builder.exporters.lcrec:write",
}

REPAIRS = {
    "none": "sid_builder.repairs.none:repair",
    "append_token": "sid_builder.repairs.append_token:repair",
    "last_level_assign": "sid_builder.repairs.last_level_assign:repair",
    "knn_capacity": "sid_builder.repairs.knn_capacity:repair",
    "random": "sid_builder.repairs.random_place:repair",
}
