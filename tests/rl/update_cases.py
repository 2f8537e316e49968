"""Steps of a GRPO trainer on a given batch, under any option, for comparison."""

import dataclasses

import torch
from torch.nn.functional import log_softmax

from tests.rl.builders import rows_with_hits

G, DEPTH = 8, 3


def scored_batch(trainer, policy):
    """A generation batch of four groups that an older policy has drawn, with one shorter completion."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer._step, trainer._buffered_inputs = 0, None
    trainer._prepare_inputs(rows_with_hits(trainer, policy))
    halves = trainer._buffered_inputs
    batch = {
        key: torch.cat([half[key] for half in halves]) if value.dim() else value
        for key, value in halves[0].items()
    }
    batch["completion_mask"][3, -1] = 0
    with torch.no_grad():
        log_p = log_probs(trainer, batch)[0]
    generator = torch.Generator().manual_seed(1)
    batch["old_per_token_logps"] = log_p + 0.3 * torch.randn(log_p.shape, generator=generator)
    return batch


def log_probs(trainer, batch):
    """Log-probs and entropies of the completions; each row's prompt by itself where rows are no groups."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    kept = trainer.update
    trainer.update = dataclasses.replace(kept, shared_prompt=len(ids) % G == 0)
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, DEPTH, compute_entropy=True)
    trainer.update = kept
    return found[:2]


def loss_and_gradients(trainer, batch, **update):
    """Of one step under other options than the trainer's."""
    kept = trainer.update
    trainer.update = dataclasses.replace(kept, **update)
    try:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    finally:
        trainer.update = kept
    learnt = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    return loss.detach(), {name: p.grad.clone() for name, p in learnt}


def assert_same_step(found, expected, atol=1e-5, rtol=1e-4):
    torch.testing.assert_close(found[0], expected[0], atol=atol, rtol=rtol)
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-2
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=atol, rtol=rtol, msg=name)


def dense_trie_log_probs(trainer, policy, batch):
    """TRL's layout, all logits, those of illegal tokens at minus infinity."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    logits = logits[:, -DEPTH - 1 : -1] / trainer.temperature
    illegal = torch.ones_like(logits, dtype=torch.bool)
    sids = [policy.template.vocabulary.encode(codes) for codes in policy.index.trie.codes_ML]
    for row, completion in enumerate(batch["completion_ids"].tolist()):
        for level in range(DEPTH):
            legal = [sid[level] for sid in sids if sid[:level] == completion[:level]]
            illegal[row, level, legal] = False
    log_p = log_softmax(logits.masked_fill(illegal, -torch.inf), dim=-1)
    return log_p.gather(2, batch["completion_ids"][:, :, None])[..., 0]
