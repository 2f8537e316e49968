"""Rewards, one file each, named in `rl.REWARDS`: a plain function `reward(completions) -> float array [C]`,
or a class `Thing(options, index, train)` of such functions where there are options (`rl.rewards.building`).
"""
