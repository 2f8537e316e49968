"""Rewards, rollouts, preference pairs, GRPO and DPO."""

REWARDS = {
    "rule": "rl.rewards.rule:reward",
    "ranking": "rl.rewards.ranking:reward",
}
