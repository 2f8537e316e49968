"""Rewards: plain functions `reward(completions) -> float array [C]`, one file each, named in `rl.REWARDS`."""
