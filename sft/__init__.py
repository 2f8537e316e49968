"""Alignment tasks, vocabulary extension, LoRA/QLoRA/full SFT, merge."""

TASKS = {
    "seqrec": "sft.tasks.seqrec:examples",
    "title_history2sid": "sft.tasks.title_history2sid:examples",
    "sid_history2title": "sft.tasks.sid_history2title:examples",
    "title2sid": "sft.tasks.title2sid:examples",
    "sid2title": "sft.tasks.sid2title:examples",
    "query2sid": "sft.tasks.query2sid:examples",
}
