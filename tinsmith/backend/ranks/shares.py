"""Which rank computes which data."""

from collections.abc import Sequence


def split(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Rows for each rank, by number of tokens: the longest row left goes to the rank that has
    least (Graham 1969, longest processing time first). A rank may get none."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += lengths[row]
    return [sorted(share) for share in shares]
