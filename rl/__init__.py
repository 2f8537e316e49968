"""Rewards, rollouts, preference pairs, GRPO and DPO."""

REWARDS = {
    "rule": "rl.rewards.rule:reward",
    "ranking": "rl.rewards.ranking:reward",
    "ranking_only": "rl.rewards.ranking_only:reward",
    "beam_rank": "rl.rewards.beam_rank:reward",
    "lambda_ndcg": "rl.rewards.lambda_ndcg:reward",
    "prefix": "rl.rewards.prefix:PrefixReward",
    "semantic": "rl.rewards.semantic:SemanticReward",
    "collaborative": "rl.rewards.collaborative:CollaborativeReward",
    "popularity": "rl.rewards.popularity:PopularityReward",
    "business": "rl.rewards.business:BusinessReward",
    "format": "rl.rewards.format:reward",
    "validity": "rl.rewards.validity:reward",
}

NEGATIVES = {
    "beam": "rl.negatives.beam:BeamNegatives",
    "random": "rl.negatives.random:RandomNegatives",
    "popularity": "rl.negatives.popularity:PopularNegatives",
    "feedback": "rl.negatives.feedback:FeedbackNegatives",
}
