"""Where many rows stand in the trie, read off the tokens they have just said, and which tokens that leaves.

A row's place depends on its last L tokens alone, so nothing is kept between steps: rows may move, be
preempted, come back or be speculated upon, and the place is still right. All rows are walked together, one
pass per level.

Legend: R rows, L levels of the trie, V vocabulary, E legal children of all rows, F SID tokens.
"""

from dataclasses import dataclass

import torch

from serve.decoding.trie_step import DeviceTrie
from sid_builder.trie import END

MODES = ("off", "items", "inline")
OFF, ITEMS, INLINE = range(3)


@dataclass(frozen=True)
class RowTokens:
    """What R rows have said and under which rules.

    Attributes:
        mode_R: int64, an index into `MODES`.
        tail_RL: int64, the last L tokens a row has said since its request began, right-aligned after -1.
        count_R: int64, how many tokens it has said in all.
        limit_R: int64, how many it may say at most (max_tokens).
        start_RX: int64 [R, 2], level and node an "items" row starts from; (0, 0) is the root.
    """

    mode_R: torch.Tensor
    tail_RL: torch.Tensor
    count_R: torch.Tensor
    limit_R: torch.Tensor
    start_RX: torch.Tensor


@dataclass(frozen=True)
class Places:
    """Which rows are inside an SID (at `level_R`, `node_R`), whose answer is complete, which write free text.

    Rows that are none of the three are off. A closed row writes text and has no room left to finish an SID.
    """

    inside_R: torch.Tensor
    complete_R: torch.Tensor
    text_R: torch.Tensor
    closed_R: torch.Tensor
    level_R: torch.Tensor
    node_R: torch.Tensor


class SidWalk:
    """A trie as the rule that says which token may come next.

    "items": the answer is one SID, then `end_id`. "inline": text in which an SID that is begun ends as a
    catalogue item; it is begun only while there is room to end it. "off": anything.
    """

    def __init__(self, trie: DeviceTrie, end_id: int) -> None:
        self.trie = trie
        self.end_id = end_id
        device, all_ids = trie.device, trie.sid_token_ids
        size = int(all_ids.max()) + 1
        self.level_of_V = torch.full((size,), -1, device=device)
        self.code_of_V = torch.zeros(size, dtype=torch.long, device=device)
        for level, ids_K in enumerate(trie.token_ids):
            known = torch.nonzero(ids_K >= 0).flatten()
            self.level_of_V[ids_K[known]] = level
            self.code_of_V[ids_K[known]] = known
        first = trie.children(torch.zeros(1, dtype=torch.long, device=device), 0).token_E
        self.not_first_F = all_ids[~torch.isin(all_ids, first)]
        # Halvings that find a code among the children of any node of a level.
        self.halvings = [int((ptr[1:].long() - ptr[:-1].long()).max()).bit_length() for ptr in trie.indptr]

    def _child(
        self, node_R: torch.Tensor, code_R: torch.Tensor, level: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Child of each node by code, by bisection in its sorted children, and whether there is one."""
        tok, indptr = self.trie.tok[level], self.trie.indptr[level]
        low, last = indptr[node_R].long(), indptr[node_R + 1].long()
        high = last
        for _ in range(self.halvings[level]):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            before = (tok[middle.clamp(max=len(tok) - 1)].long() & 0xFFFF) < code_R
            open_R = low < high
            low, high = (
                torch.where(open_R & before, middle + 1, low),
                torch.where(open_R & ~before, middle, high),
            )
        child = low.clamp(max=len(tok) - 1)
        return child, (low < last) & ((tok[child].long() & 0xFFFF) == code_R)

    def _ended(self, node_R: torch.Tensor, level: int) -> torch.Tensor:
        """Whether the SID of a node of `level` is already whole (its one child is END)."""
        if level == self.trie.depth:
            return torch.ones_like(node_R, dtype=torch.bool)
        first = self.trie.indptr[level][node_R].long()
        return (self.trie.tok[level][first].long() & 0xFFFF) == END

    def places(self, rows: RowTokens) -> Places:
        """Walk every row from where its current SID begins. A start outside the trie counts as complete."""
        depth = self.trie.depth
        known = (rows.tail_RL >= 0) & (rows.tail_RL < len(self.level_of_V))
        safe_RL = rows.tail_RL.clamp(0, len(self.level_of_V) - 1)
        level_RL = torch.where(known, self.level_of_V[safe_RL], -1)
        code_RL = self.code_of_V[safe_RL]
        columns = torch.arange(depth, device=rows.tail_RL.device)
        begun_R = torch.where(level_RL == 0, columns, -1).max(dim=1).values
        items, inline = rows.mode_R == ITEMS, rows.mode_R == INLINE
        # Column of the SID's first token: "items" says nothing else, "inline" begins at its last level-0
        # token.
        cursor_R = torch.where(items, depth - rows.count_R, begun_R)
        walking = items & (cursor_R >= 0) | inline & (begun_R >= 0)
        level_R = torch.where(items, rows.start_RX[:, 0], 0)
        node_R = torch.where(items, rows.start_RX[:, 1], 0)
        inside = torch.zeros_like(walking)
        for level in range(depth + 1):
            here = walking & (level_R == level)
            nodes = self._nodes_of(level)
            on_trie = here & (node_R >= 0) & (node_R < nodes)
            at_R = torch.where(on_trie, node_R, 0)
            going = on_trie & ~self._ended(at_R, level)
            stops = going & (cursor_R >= depth)
            inside |= stops
            if level == depth:
                break
            column_R = cursor_R.clamp(0, depth - 1)[:, None]
            said_level = torch.gather(level_RL, 1, column_R)[:, 0]
            child_R, found = self._child(at_R, torch.gather(code_RL, 1, column_R)[:, 0], level)
            steps = going & ~stops & found & (said_level == level)
            node_R = torch.where(steps, child_R, node_R)
            level_R = torch.where(steps, level + 1, level_R)
            cursor_R = torch.where(steps, cursor_R + 1, cursor_R)
            walking &= level_R > level
        text = inline & ~inside
        closed = text & (rows.limit_R - rows.count_R < depth)
        return Places(inside, items & ~inside, text, closed, level_R, node_R)

    def _nodes_of(self, level: int) -> int:
        return 1 if level == 0 else len(self.trie.tok[level - 1])

    def constrain(self, logits_RV: torch.Tensor, places: Places) -> torch.Tensor:
        """Log-probs over the whole vocabulary at legal tokens, -inf elsewhere, in place (fp32).

        Not renormalised, so that sums of scores are those of transformers' constrained beam search.
        """
        norm_R = torch.logsumexp(logits_RV, dim=1)
        row_parts, token_parts = [], []
        for level in range(self.trie.depth):
            rows = torch.nonzero(places.inside_R & (places.level_R == level)).flatten()
            if len(rows):
                candidates = self.trie.children(places.node_R[rows], level)
                row_parts.append(rows[candidates.row_E])
                token_parts.append(candidates.token_E)
        complete = torch.nonzero(places.complete_R).flatten()
        row_E = torch.cat([*row_parts, complete])
        token_E = torch.cat([*token_parts, torch.full_like(complete, self.end_id)])
        legal_E = logits_RV[row_E, token_E] - norm_R[row_E]
        masked_R = places.inside_R | places.complete_R
        if bool(masked_R.all()):  # nothing but answers: no full-width subtraction
            logits_RV.fill_(-torch.inf)
        else:
            logits_RV -= norm_R[:, None]
            logits_RV.masked_fill_(masked_R[:, None], -torch.inf)
        logits_RV[row_E, token_E] = legal_E
        for chosen_R, banned_F in (
            (places.text_R & ~places.closed_R, self.not_first_F),
            (places.closed_R, self.trie.sid_token_ids),
        ):
            rows = torch.nonzero(chosen_R).flatten()
            if len(rows):
                logits_RV[rows[:, None], banned_F] = -torch.inf
        return logits_RV
