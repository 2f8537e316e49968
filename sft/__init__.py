"""Alignment tasks, vocabulary extension, LoRA/QLoRA/full SFT, merge."""

TASKS = {
    # what comes next
    "seqrec": "sft.tasks.seqrec:examples",
    "title_history2sid": "sft.tasks.title_history2sid:examples",
    "sid_history2title": "sft.tasks.sid_history2title:examples",
    "title_history2title": "sft.tasks.title_history2title:examples",
    "fusionseqrec": "sft.tasks.fusionseqrec:examples",
    # one item
    "title2sid": "sft.tasks.title2sid:examples",
    "sid2title": "sft.tasks.sid2title:examples",
    "item2index": "sft.tasks.item2index:examples",
    "index2item": "sft.tasks.index2item:examples",
    "query2sid": "sft.tasks.query2sid:examples",
    # what people say; these read --intents
    "itemsearch": "sft.tasks.itemsearch:examples",
    "preferenceobtain": "sft.tasks.preferenceobtain:examples",
    "preference2sid": "sft.tasks.preference2sid:examples",
    "reasoned_seqrec": "sft.tasks.reasoned_seqrec:examples",
}
