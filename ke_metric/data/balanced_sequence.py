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
    sequence = np.empty(length, np.int64)
    fill_balanced(sequence, items, start=start, group=group, generator=generator)
    return sequence


def fill_balanced(
    sequence: IntArray, items: IntArray, *, start: int, group: int, generator: np.random.Generator
) -> None:
    """Fill a contiguous array with what `balanced_sequence` returns.

    In place, because an epoch over 200,000 classes does this for each of them.
    """
    count = len(items)
    passes, done = divmod(len(sequence), count)
    if done:
        start %= count
        before_the_end = min(done, count - start)
        sequence[:before_the_end] = items[start : start + before_the_end]
        sequence[before_the_end:done] = items[: done - before_the_end]
        generator.shuffle(sequence[:done])
    for _ in range(passes):
        following = sequence[done : done + count]
        following[:] = items
        generator.shuffle(following)
        if begun := done % group:
            _complete(following, sequence[done - begun : done], group, generator)
        done += count


def _complete(shuffled: IntArray, begun: IntArray, group: int, generator: np.random.Generator) -> None:
    """Reorder shuffled items so that the first ones complete the group that was begun without repeating any of it."""
    # Lists: most classes have a handful of images, for which NumPy's sets take many times longer.
    used, found = set(begun.tolist()), shuffled.tolist()
    fresh, missing = [item for item in found if item not in used], group - len(begun)
    shuffled[:missing] = fresh[:missing]
    shuffled[missing:] = fresh[missing:] + [item for item in found if item in used]
    generator.shuffle(shuffled[missing:])
