"""Sources of rejected answers, one file each, named in `rl.NEGATIVES`: a class `Thing(options, index,
interactions)` with a method `draw` (`rl.preference_cases.NegativeSource`).
"""
