"""A random sequence in which every item comes equally often, and different ones stand together."""

from __future__ import annotations

import numpy as np

from ke_metric.data.images import IntArray


def balanced_sequence(
    items: IntArray, length: int, *, start: int, group: int, generator: np.random.Generator
) -> IntArray:
    """Return `length` of the items, each equally often (counts differ by at most one), in random order.

    The items used once more are those from position `start` on, cyclically, so that they can take turns. Each
    consecutive group of `group` items is made of different ones.

    Args:
        items: Different numbers.
        length: How many to return.
        start: Position in `items`, taken modulo their number.
        group: Length of a group, at most the number of items.
        generator: Draws the order.

    Returns:
        [length] numbers.
    """
    passes, extra = divmod(length, len(items))
    once_more = items.take(np.arange(start, start + extra), mode="wrap")
    sequence = [generator.permutation(once_more)]
    for done in range(passes):
        begun = (extra + done * len(items)) % group
        sequence.append(_shuffled_after(sequence[-1][len(sequence[-1]) - begun :], items, group, generator))
    return np.concatenate(sequence)


def _shuffled_after(begun: IntArray, items: IntArray, group: int, generator: np.random.Generator) -> IntArray:
    """Shuffle the items so that the first ones complete the group that was begun without repeating any of it."""
    shuffled = generator.permutation(items)
    if not len(begun):
        return shuffled
    repeats = np.isin(shuffled, begun)
    head, tail = np.split(shuffled[~repeats], [group - len(begun)])
    return np.concatenate([head, generator.permutation(np.concatenate([tail, shuffled[repeats]]))])
