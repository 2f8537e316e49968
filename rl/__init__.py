"""Rewards, rollouts, preference pairs, GRPO and DPO."""

REWARDS = {
    "rule": "rl.rewards.rule:reward",
    "ranking": "rl.rewards.ranking:reward",
    "lambda_ndcg": "rl.rewards.lambda_ndcg:reward",
}
