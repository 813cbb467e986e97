"""Which of several GPUs reach each other best: NVLink, then PCIe, then one NUMA node. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from pytorch_spawner.core.gpus import LINKS, Gpu

# The best group of k, for k from 0: its sum of distances, and which devices it is of.
_Table = list[tuple[int, int]]

_SEEDS: Final = 32
_CANDIDATES: Final = 64


def nearest(ranked: Sequence[Gpu], count: int) -> tuple[int, ...]:
    """Choose ``count`` GPUs with the smallest sum of distances, the better-ranked on a tie.

    Exact where the distances form a tree, as buses and switches do. Where they do not (NVLink
    between some pairs of a group only), it is the best of what the tree of shortest chains says and
    of the groups grown from each of the first 32.

    Args:
        ranked: Candidates, the preferred first; at least ``count``. Of more than 64 only the first
            64 are looked at.
        count: >= 1.

    Returns:
        Their places in ``ranked``, ascending.
    """
    if count == 1:
        return (0,)
    candidates = ranked[: max(count, _CANDIDATES)]
    is_unlinked = not any(gpu.links for gpu in candidates)
    if is_unlinked and len({gpu.numa_node for gpu in candidates}) == 1:
        return tuple(range(count))
    between = _distances(candidates)
    least, group = _of_tree(between, count)
    if _total(between, group) == least:
        # No group is nearer: a chain of links is never longer than the way straight across.
        return group
    grown = (_grown(between, seed, count) for seed in range(min(len(candidates), _SEEDS)))
    return min((group, *grown), key=lambda one: _total(between, one))


def _distances(gpus: Sequence[Gpu]) -> list[list[int]]:
    """[n, n]: places in ``LINKS``; 0 is the nearest."""
    same_node, system = LINKS.index("numa-node"), LINKS.index("system")
    tables = [{link.uuid: LINKS.index(link.kind) for link in gpu.links} for gpu in gpus]
    return [
        [
            tables[one].get(
                other.uuid,
                same_node
                if gpu.numa_node is not None and gpu.numa_node == other.numa_node
                else system,
            )
            for other in gpus
        ]
        for one, gpu in enumerate(gpus)
    ]


def _total(between: Sequence[Sequence[int]], group: Sequence[int]) -> int:
    return sum(between[one][other] for one, other in itertools.combinations(group, 2))


def _of_tree(between: Sequence[Sequence[int]], count: int) -> tuple[int, tuple[int, ...]]:
    """The best group when two devices are as far apart as the worst link of their best chain.

    Kruskal's order joins clusters, the nearest two first; two clusters that are joined at a
    distance have that distance between any two of their members.

    Returns:
        Its sum of distances, which is not above any group's true one, and the group.
    """
    n = len(between)
    # A group is a sum of bits, the preferred device's the highest and all of them negative: of two
    # groups of one size the smaller sum is the better-ranked one, and sums add up under joining.
    clusters: dict[int, _Table] = {one: [(0, 0), (0, -(1 << (n - 1 - one)))] for one in range(n)}
    cluster_of = list(range(n))
    pairs = itertools.combinations(range(n), 2)
    for apart, one, other in sorted((between[one][other], one, other) for one, other in pairs):
        keep, gone = cluster_of[one], cluster_of[other]
        if keep != gone:
            clusters[keep] = _joined(clusters[keep], clusters.pop(gone), apart, count)
            cluster_of = [keep if cluster == gone else cluster for cluster in cluster_of]
    ((least, bits),) = (table[count] for table in clusters.values())
    return least, tuple(one for one in range(n) if -bits >> (n - 1 - one) & 1)


def _joined(one: _Table, other: _Table, apart: int, count: int) -> _Table:
    """The best groups of two clusters together, up to ``count`` devices."""
    joined: _Table = []
    for size in range(min(count, len(one) + len(other) - 2) + 1):
        parts = range(max(0, size - len(other) + 1), min(size, len(one) - 1) + 1)
        joined.append(
            min(
                (
                    one[part][0] + other[size - part][0] + apart * part * (size - part),
                    one[part][1] + other[size - part][1],
                )
                for part in parts
            )
        )
    return joined


def _grown(between: Sequence[Sequence[int]], seed: int, count: int) -> tuple[int, ...]:
    """The group that grows from one device by the nearest one at a time."""
    group = [seed]
    near = dict(enumerate(between[seed]))
    del near[seed]
    while len(group) < count:
        chosen = min(near, key=lambda one: near[one])
        del near[chosen]
        group.append(chosen)
        for one in near:
            near[one] += between[chosen][one]
    return tuple(sorted(group))
