"""Split a data set into parts for training and evaluation."""

from collections import Counter
from collections.abc import Hashable, Sequence
from random import Random
from typing import NamedTuple

PARTS = ("train", "dev", "test")


class Member(NamedTuple):
    """Hold what a split needs from a Doc: the keys that keep it with other Docs (its text, its
    document), and its category if it has exactly one."""

    keys: tuple[Hashable, ...]
    category: str | None


def read_shares(text: str) -> dict[str, float]:
    """Parse "0.8,0.1,0.1" into the shares of train, dev and test (or only train and dev). Raises
    ValueError unless they are two or three positive numbers that sum to 1."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"--split is '{text}'. Pass two or three shares that sum to 1, such as 0.8,0.1,0.1 for "
            "train, dev and test."
        )
    return dict(zip(PARTS, shares, strict=False))


def split_members(members: Sequence[Member], shares: dict[str, float], *, seed: int) -> list[str]:
    """Return the name of each Doc's part.

    Docs with a common key form a group, which stays in one part. Groups are assigned in random
    order, the largest first, each to the part that lacks most Docs of the group's category and then
    most Docs overall. Raises ValueError if a part stays empty.
    """
    roots = join_keys(members)
    groups: dict[int, list[int]] = {}
    for i, root in enumerate(roots):
        groups.setdefault(root, []).append(i)
    order = list(groups.values())
    Random(seed).shuffle(order)
    order.sort(key=len, reverse=True)
    categories = {
        root: Counter(members[i].category for i in own).most_common(1)[0][0]
        for root, own in groups.items()
    }
    seen: Counter[str | None] = Counter()
    given: Counter[tuple[str | None, str]] = Counter()
    total: Counter[str] = Counter()
    parts = [""] * len(members)
    done = 0
    for own in order:
        category = categories[roots[own[0]]]
        seen[category] += len(own)
        done += len(own)

        def lacks(
            part: str, category: str | None = category, done: int = done
        ) -> tuple[float, float]:
            of_category = shares[part] * seen[category] - given[category, part]
            return round(of_category, 9), shares[part] * done - total[part]

        chosen = max(shares, key=lacks)
        given[category, chosen] += len(own)
        total[chosen] += len(own)
        for i in own:
            parts[i] = chosen
    empty = [part for part in shares if not total[part]]
    if empty:
        raise ValueError(
            f"--split leaves nothing for {' and '.join(empty)}: {len(members)} documents are "
            f"{len(groups)} groups with the same text or source. Use fewer parts, or more data."
        )
    return parts


def join_keys(members: Sequence[Member]) -> list[int]:
    """Return each Doc's group number; Docs that share a key, directly or through other Docs, are in
    one group."""
    parents = list(range(len(members)))

    def find(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    first: dict[Hashable, int] = {}
    for i, member in enumerate(members):
        for key in member.keys:
            parents[find(i)] = find(first.setdefault(key, i))
    return [find(i) for i in range(len(members))]
