"""Balanced assignment of more items than codes, where the exact one takes too long.

Entropic optimal transport in the log domain (Cuturi 2013), the temperature lowered step by step with the
prices of the codes kept. Every item then draws its code from its row of the plan; a code that too many drew
keeps those that would lose most, and the few others are assigned exactly.

Legend: G items, K codes, R items that are left, k codes with room.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

# Temperatures as shares of the spread of distances, and updates at each.
_TEMPERATURES = tuple(0.5 ** np.arange(1, 10))
_UPDATES = 8
_FEW = 800  # places that are filled by the exact assignment


def sinkhorn_assign(distance_GK: np.ndarray, seed: int = 0) -> np.ndarray:
    """Codes int64 [G] with a small total distance that repeat as little as possible.

    With G <= K all differ (and the assignment is exact). With G > K every code is used and none more than
    once oftener than another.
    """
    num_items, num_codes = distance_GK.shape
    cost_GK = np.array(distance_GK, dtype=np.float32)
    cost_GK -= cost_GK.min(axis=1, keepdims=True)
    code_G = _fill_codes(cost_GK, num_items // num_codes, np.random.default_rng(seed))
    # What a whole number of rounds leaves over, fewer items than codes: one each.
    left_R = np.flatnonzero(code_G < 0)
    row_R, column_R = linear_sum_assignment(cost_GK[left_R])
    code_G[left_R[row_R]] = column_R
    return code_G


def _fill_codes(cost_GK: np.ndarray, room: int, rng: np.random.Generator) -> np.ndarray:
    """Codes [G] of which each is given to exactly `room` items; -1 for the items left over."""
    num_items, num_codes = cost_GK.shape
    code_G, left_R = np.full(num_items, -1), np.arange(num_items)
    room_K = np.full(num_codes, room)
    while room_K.sum() > _FEW:
        open_k = np.flatnonzero(room_K)
        value_Rk, temperature = _values(cost_GK[np.ix_(left_R, open_k)], room_K[open_k])
        rows = np.arange(len(left_R))
        noise_Rk = rng.gumbel(scale=temperature, size=value_Rk.shape).astype(np.float32)
        slot_R = (value_Rk + noise_Rk).argmax(axis=1)
        chosen_R = value_Rk[rows, slot_R]
        value_Rk[rows, slot_R] = -np.inf
        queue = np.lexsort((value_Rk.max(axis=1) - chosen_R, slot_R))  # who would lose most comes first
        slot = slot_R[queue]
        served = queue[np.arange(len(slot)) - np.searchsorted(slot, slot) < room_K[open_k][slot]]
        code_G[left_R[served]] = open_k[slot_R[served]]
        room_K -= np.bincount(open_k[slot_R[served]], minlength=num_codes)
        left_R = np.delete(left_R, served)
    place = np.repeat(np.arange(num_codes), room_K)
    row_R, column_R = linear_sum_assignment(cost_GK[np.ix_(left_R, place)])
    code_G[left_R[row_R]] = place[column_R]
    return code_G


def _values(cost_Rk: np.ndarray, room_k: np.ndarray) -> tuple[np.ndarray, float]:
    """What every code is worth to every item, price minus cost, float32 [R, k], and the last temperature.

    The plan is the softmax of value / temperature along a row; prices make each code's share of it
    proportional to its room.
    """
    price_k = np.zeros(len(room_k), dtype=np.float32)
    spread = float(cost_Rk.std()) or 1.0
    wanted_k = np.log(room_k * (len(cost_Rk) / room_k.sum()))
    for share in _TEMPERATURES:
        temperature = spread * share
        for _ in range(_UPDATES):
            plan_Rk = price_k - cost_Rk
            plan_Rk -= plan_Rk.max(axis=1, keepdims=True)
            np.exp(plan_Rk / temperature, out=plan_Rk)
            load_k = (1.0 / plan_Rk.sum(axis=1)) @ plan_Rk
            price_k += (temperature * (wanted_k - np.log(np.maximum(load_k, 1e-30)))).astype(np.float32)
    return price_k - cost_Rk, temperature
