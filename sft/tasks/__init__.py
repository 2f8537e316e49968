"""Alignment tasks: each a function `(TaskContext, numpy Generator) -> iterator of TaskExample`, one pass over
its data.
"""
