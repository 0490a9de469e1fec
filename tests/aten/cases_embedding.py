"""Cases for aten/embedding.py."""

import numpy as np

from tests.aten.harness import case, rand

W = rand(5, 3)
IDS = np.array([[0, 4, 2], [1, 1, 3]])
ITEMS = np.array([0, 1, 2, 3, 1, 0, 2, 4])
OFFSETS = np.array([0, 2, 2, 5])  # the second bag is empty
WEIGHTS = rand(8, seed=3)
NONE = np.zeros(0, np.int64)
EMBEDDING = [
    case(W, IDS), case(W, IDS, 1), case(W, IDS.astype(np.int32), 1, True, False),
    case(W, np.array(3)), case(W, np.zeros((0, 2), np.int64)), case(rand(5, 0), IDS),
    case(rand(5, 3, dtype="bfloat16"), IDS), case(rand(5, 3, dtype="int64"), IDS)]  # fmt: skip


def bags(*, none):
    """Every mode and option; ``none`` stands for no padding index."""
    found = []
    for mode in (0, 1, 2):
        for padding in (none, 1):
            weights = WEIGHTS if mode == 0 else None
            found += [
                case(W, ITEMS, OFFSETS, False, mode, False, None, False, padding),
                case(W, ITEMS, OFFSETS, False, mode, False, weights, False, padding),
                # here the lengths of results 2 and 3 differ among torch's own kernels
                case(W, ITEMS, np.array([0, 2, 2, 5, 8]), False, mode, False, None, True, padding,
                     compare=(0, 1)),
                # all of the last bag is padding
                case(W, np.array([0, 1, 1]), np.array([0, 1]), False, mode, False, None, False,
                     padding),
                case(rand(5, 3, dtype="bfloat16"), ITEMS, OFFSETS, False, mode, False, None, False,
                     padding),
            ]  # fmt: skip
    found += [
        case(W, ITEMS.astype(np.int32), OFFSETS.astype(np.int32), False, 1, False, None, False,
             none),
        case(W, NONE, np.array([0, 0]), False, 1, False, None, False, none),
    ]  # fmt: skip
    return found


BAGS = [case(W, ITEMS, OFFSETS), *bags(none=-1)]
CASES = {
    "aten.embedding.default": EMBEDDING,
    "aten._embedding_bag.default": BAGS,
    "aten._embedding_bag_forward_only.default": BAGS,
    "aten.embedding_bag.default": [
        case(W, ITEMS, OFFSETS), case(W, ITEMS, OFFSETS, False, 2),
        case(W, ITEMS, OFFSETS, False, 0, False, WEIGHTS)],
    "aten.embedding_bag.padding_idx": bags(none=None),
    "aten.one_hot.default": [
        case(IDS, 5), case(IDS, 7), case(np.array(2), 3), case(np.zeros((0, 2), np.int64), 3)],
    "aten.embedding_renorm.default": [
        *(case(W, IDS[:, :2], 1.0, p) for p in (2.0, 1.0, float("inf"))), case(W, IDS, 100.0, 2.0)],
}  # fmt: skip
