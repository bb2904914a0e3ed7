"""The mesh as a picture in text: who is where. Imports no torch."""

from __future__ import annotations

from triax.parallel.layout import Layout

_MAX_ROWS, _MAX_COLUMNS = 8, 8


def draw_mesh(layout: Layout, processes_per_node: int, expert: int = 1) -> str:
    """Rows are pipeline ranks, columns data-parallel ranks, brackets tensor-parallel groups, and
    those that share sequences.

    Each bracket holds its processes' ranks and the node that they are on. At most 80 columns wide
    for up to 8-way tensor parallelism of up to 999 processes; large meshes are cut.

    Args:
        expert: over how many neighbours the experts of a layer are divided.
    """
    data, groups = layout.data_parallel, layout.groups("context", "tensor")
    cells = [
        [_cell(ranks, processes_per_node) for ranks in groups[row * data : (row + 1) * data]]
        for row in range(min(layout.pipeline, _MAX_ROWS))
    ]
    width = max(len(cell) for row in cells for cell in row)
    columns = max(1, min(_MAX_COLUMNS, data, (80 - 13 - 4) // (width + 1)))
    lines = []
    for number, row in enumerate(cells):
        more = " ..." if columns < data else ""
        lines.append(
            f"pipeline {number:<3} " + " ".join(c.ljust(width) for c in row[:columns]) + more
        )
    if layout.pipeline > _MAX_ROWS:
        lines.append("...")
    lines.append(_legend(layout))
    if expert > 1:
        lines.append(f"expert: each {expert} neighbours with other tokens divide a layer's experts")
    return "\n".join(line.rstrip() for line in lines)


def tensor_crosses_nodes(layout: Layout, processes_per_node: int) -> bool:
    """Whether some tensor-parallel group spans nodes, whose links are an order slower."""
    return any(
        ranks[0] // processes_per_node != ranks[-1] // processes_per_node
        for ranks in layout.groups("tensor")
    )


def _cell(ranks: list[int], processes_per_node: int) -> str:
    first, last = ranks[0] // processes_per_node, ranks[-1] // processes_per_node
    node = str(first) if first == last else f"{first}-{last}"
    shown = " ".join(str(rank) for rank in ranks)
    if len(ranks) > 8:
        shown = f"{ranks[0]} .. {ranks[-1]}"
    return f"[{shown}]n{node}"


def _legend(layout: Layout) -> str:
    ranks = "rank" if layout.data_parallel == 1 else "ranks"
    parts = [f"{layout.data_parallel} data-parallel {ranks} a row"]
    if layout.replicate > 1 and layout.shard > 1:
        parts.append(f"{layout.replicate} replicas of {layout.shard} shards")
    shared = "ranks that share sequences" if layout.context > 1 else "ranks of a tensor group"
    parts.append(f"[{shared}]n<node>")
    return "; ".join(parts)
