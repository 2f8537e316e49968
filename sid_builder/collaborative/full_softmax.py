"""Cross-entropy over all items without keeping the logits: a few rows at a time, gradient on the way.

Legend: T targets, r rows of one chunk, D dimensions, N items.
"""

from typing import Any

import torch

# Logits held at once, in floats: small enough for a CPU's cache, large enough to keep a GPU busy.
_CPU_FLOATS, _GPU_FLOATS = 1 << 20, 1 << 27
_FEWEST_ROWS = 64  # fewer make a slow matrix product; with N items they take 64 * N * 4 bytes


class FullSoftmaxLoss(torch.autograd.Function):
    """`apply(hidden_TD, items_ND, targets_T)`: mean over T of -log softmax(hidden @ items.T)[target].

    All float32, targets int64 in 0..N-1, T > 0. The gradient (softmax - one-hot) is used while the chunk's
    logits are at hand: three matrix products per chunk, where autograd with recomputation takes four, and
    memory for one chunk of logits only.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: torch.Tensor, items_ND: torch.Tensor, targets_T: torch.Tensor
    ) -> torch.Tensor:
        num_targets = len(hidden_TD)
        floats = _GPU_FLOATS if hidden_TD.is_cuda else _CPU_FLOATS
        rows = max(_FEWEST_ROWS, floats // len(items_ND))
        grad_hidden_TD, grad_items_ND = torch.empty_like(hidden_TD), torch.zeros_like(items_ND)
        loss = hidden_TD.new_zeros(())
        for start in range(0, num_targets, rows):
            hidden_rD = hidden_TD[start : start + rows]
            targets_r1 = targets_T[start : start + rows, None]
            logits_rN = hidden_rD @ items_ND.T
            highest_r1 = logits_rN.amax(dim=1, keepdim=True)
            own_r1 = logits_rN.gather(1, targets_r1)
            odds_rN = logits_rN.sub_(highest_r1).exp_()
            total_r1 = odds_rN.sum(dim=1, keepdim=True)
            loss += (total_r1.log() + highest_r1 - own_r1).sum()
            grad_rN = odds_rN.div_(total_r1)
            grad_rN.scatter_add_(1, targets_r1, torch.full_like(total_r1, -1.0))
            torch.mm(grad_rN, items_ND, out=grad_hidden_TD[start : start + rows])
            grad_items_ND.addmm_(grad_rN.T, hidden_rD)
        ctx.save_for_backward(grad_hidden_TD.div_(num_targets), grad_items_ND.div_(num_targets))
        return loss / num_targets

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        grad_hidden_TD, grad_items_ND = ctx.saved_tensors
        return grad * grad_hidden_TD, grad * grad_items_ND, None
