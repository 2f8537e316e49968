"""The quality report of a set of semantic IDs: `report.json` for programs, `report.html` for people.

Sections of the JSON (`quality_report` makes them; shares are in 0..1; a section is absent when what it needs
was not given, a value is null when there was nothing to measure):

    summary               headline figures: num_items, num_distinct, level_sizes, example, collision_rate,
                          items_sharing, largest_group, targets_sharing, level_1_used, level_1_perplexity,
                          co_click_lift, reconstruction_error
    levels                per level: size, used, dead, perplexity, gini, items (that have a code here), most
                          (items of the fullest code), counts (items per code, in code order), appended (the
                          level was added by repair)
    tree                  per level: nodes that have children there, and the mean, p10, median, p90 and max of
                          their children, single_child (share of nodes with one)
    collisions            collision_rate (1 - distinct SIDs / items), items_sharing, groups, largest_group,
                          group_sizes (size -> groups), largest_groups: each with its sid, size, item_index
                          and items by name, identical_embeddings (no quantizer could split it)
    targets               over valid and test: cases, targets_sharing, items_per_target_sid, item_sid_ratio
    co_click              per depth: pairs of train neighbours, together (share the first codes), chance, lift
    labels                per category position (and domain): label, values, items, largest, most_frequent;
                          depths: depth, prefixes, purity, nmi, together, chance, lift
    domains               per domain, if there are several: domain, items, used and perplexity per level,
                          collision_rate, own_level_1 (items whose first code no other domain uses)
    identical_embeddings  items, groups, largest_group, largest (that group by name)
    reconstruction        items (measured on), error_by_level, error, error_after_repair, repair_cost
    neighbours            pairs, candidates; at: k, hit rate of embeddings and of quantized vectors, chance
    prefixes              a dozen first codes: prefix, items, candidates, nearest (title, item_id, sid, cosine
                          and inside, or train_count without embeddings)
    examples              a dozen items: item_id, title, sid
    source, embedder,     added by the build: what was read, what made the embeddings, what repair did (with
    repair                collision_rate_before)
    thresholds            added by the build: name, measured, limit, passed of each that was set
"""

from sid_builder.report.behaviour import co_click_lift, target_sharing
from sid_builder.report.codebooks import gini, level_use
from sid_builder.report.figures import quality_report
from sid_builder.report.page import ReportConfig, write_report
from sid_builder.report.vectors import neighbour_hit_rate, reconstruction_errors

__all__ = [
    "ReportConfig",
    "co_click_lift",
    "gini",
    "level_use",
    "neighbour_hit_rate",
    "quality_report",
    "reconstruction_errors",
    "target_sharing",
    "write_report",
]
