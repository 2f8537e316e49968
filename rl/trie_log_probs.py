"""Log-probs of SIDs under the policy that knows the catalogue: at each prefix a softmax over the trie's
children alone.

What decoding samples from under the trie, differentiable. Over all SIDs of the trie the probabilities add up
to 1, so an update moves mass between items only; over the whole vocabulary it may as well move it to or from
tokens that decoding never looks at. The trie is that of all items on the shelf: neither a user's history nor
any other filter is taken out of it. Only the children's rows of the head are computed.

Legend: N rows, L columns (level l in column l), H hidden size, E children of all rows' prefixes, U distinct
tokens of them.
"""

from typing import Any

import torch

from prompts.branches import IGNORE
from serve.decoding.tree_model import row_log_softmax
from serve.decoding.trie_step import DeviceTrie


class TrieLogProbs:
    """Scores the hidden states before the tokens of SIDs; `temperature` divides logits, as in TRL's head."""

    def __init__(self, trie: DeviceTrie, temperature: float) -> None:
        self.trie, self.temperature = trie, temperature

    def __call__(
        self, head: Any, hidden_NLH: torch.Tensor, labels_NL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies, fp32 [N, L]; 0 where the label is `IGNORE`.

        Args:
            head: the model's output embeddings, a linear layer.
            labels_NL: int64; each row the beginning of an SID's tokens, then `IGNORE`.
        """
        nodes_N = labels_NL.new_zeros(len(labels_NL))
        log_probs, entropies = [], []
        for level, label_N in enumerate(labels_NL.unbind(dim=1)):
            log_p_N, entropy_N, nodes_N = self._step(head, hidden_NLH[:, level], label_N, nodes_N, level)
            log_probs.append(log_p_N)
            entropies.append(entropy_N)
        return torch.stack(log_probs, dim=1), torch.stack(entropies, dim=1)

    def _step(
        self, head: Any, hidden_NH: torch.Tensor, label_N: torch.Tensor, nodes_N: torch.Tensor, level: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of one level: log-prob and entropy of each row, and the node that its label leads to."""
        children = self.trie.children(nodes_N, level)
        row_E, num_rows = children.row_E, len(nodes_N)
        # An SID that has ended has one child, of no token: whatever stands for its logit, its log-prob is 0.
        token_U, place_E = torch.unique(children.token_E.clamp(min=0), return_inverse=True)
        bias_U = None if head.bias is None else head.bias[token_U]
        weight_UH = head.weight[token_U]
        logits_NU = torch.nn.functional.linear(hidden_NH.to(weight_UH.dtype), weight_UH, bias_U).float()
        log_p_E = row_log_softmax(logits_NU[row_E, place_E] / self.temperature, row_E, num_rows)

        count_N = torch.bincount(row_E, minlength=num_rows)
        chosen_N = count_N.cumsum(0) - count_N  # a row without a label goes on anywhere
        is_label_E = children.token_E == label_N[row_E]
        chosen_N[row_E[is_label_E]] = torch.nonzero(is_label_E)[:, 0]
        scored_N = label_N != IGNORE
        assert int(is_label_E.sum()) == int(scored_N.sum()), "a completion is no SID of the trie"
        entropy_N = log_p_E.new_zeros(num_rows).index_add(0, row_E, -log_p_E.exp() * log_p_E)
        return (
            log_p_E[chosen_N].masked_fill(~scored_N, 0.0),
            entropy_N.masked_fill(~scored_N, 0.0),
            children.child_E[chosen_N],
        )
