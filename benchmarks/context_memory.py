"""What attention over long sequences holds and sends, by process, as sequences grow.

    python benchmarks/context_memory.py --plot docs/context-memory.png

Runs forward and backward passes of one layer's attention over packed documents of some 2,048 tokens
on gloo processes of this machine: a single one with the dense mask and tile by tile, and several
that divide the sequence, by each method. Peak memory is what the process's resident memory rises
by, the largest of all processes; masks are tensors' bytes; what is sent is counted by
`sent_bytes`, which a test holds to the messages. Sizes: 4 query heads and 2 key/value heads of 16
dimensions, fp32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from triax.models.architecture import Attention
from triax.models.batch import Batch
from triax.models.families import model_config
from triax.models.layers.attention import attend
from triax.models.layers.masks import Reach, attention_mask, reach
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.context.attention import divide_attention
from triax.parallel.context.methods import sent_bytes
from triax.parallel.context.sequence import SequenceDivision
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh

LAYER = Attention(num_heads=4, num_query_groups=2, head_dim=16)
MODEL: dict[str, Any] = dict(
    num_layers=1, hidden_size=64, num_heads=4, num_kv_heads=2, ffn_hidden_size=64, vocab_size=64
)
MEAN_DOCUMENT = 2048
LONGEST_DENSE = 16384
"""Beyond it a dense mask takes gigabytes."""


def packed_rows(num_tokens: int) -> Batch:
    """One row of documents."""
    generator = torch.Generator().manual_seed(num_tokens)
    begins_BT = torch.rand(1, num_tokens, generator=generator) < 1 / MEAN_DOCUMENT
    tokens_BT = torch.zeros(1, num_tokens, dtype=torch.int64)
    return Batch(tokens_BT, tokens_BT, begins_BT.cumsum(1).int())


def mask_bytes(mask: object) -> int:
    """Of what a process holds to know who sees whom."""
    if isinstance(mask, Reach):
        return 0 if mask.firsts_BT is None else mask.firsts_BT.nbytes
    return mask.nbytes if isinstance(mask, Tensor) else 0


def resident_bytes(which: str) -> int:
    """`VmRSS`, or `VmHWM`: the most since `reset_peak`."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def work(rank: int, size: int, how: str, num_tokens: int, folder: str) -> None:
    """One process's part; rank r writes `folder/r.json`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    mesh = build_mesh(Layout.of(ParallelConfig(context=size), size), "cpu")["context"]
    rows = SequenceDivision(mesh).cut(packed_rows(num_tokens))
    num_own, make_mask, mix = num_tokens // size, attention_mask, attend
    if how == "tiles":
        make_mask = reach  # type: ignore[assignment]
    if size > 1:
        with torch.device("meta"):
            model = Transformer(model_config(**MODEL))
        model.make_mask = reach
        divide_attention(model, mesh, how, tensor=1)  # type: ignore[arg-type]
        make_mask, mix = model.make_mask, model.blocks["0"].attention.attend  # type: ignore
    q, k, v = (
        torch.randn(1, heads, num_own, LAYER.head_dim, requires_grad=True)
        for heads in (LAYER.num_heads, LAYER.num_query_groups, LAYER.num_query_groups)
    )
    grad = torch.randn(1, LAYER.num_heads, num_own, LAYER.head_dim)
    reset_peak()
    before = resident_bytes("VmRSS")
    mask = make_mask(rows.document_ids_BT, num_own, None, q.device)
    mix(q, k, v, mask).backward(grad)
    peak = resident_bytes("VmHWM") - before
    told = {"peak": peak, "mask": mask_bytes(mask)}
    Path(f"{folder}/{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def measured(how: str, size: int, num_tokens: int) -> dict[str, int]:
    """The largest of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        start = multiprocessing.get_context("spawn").Process
        workers = [
            start(target=work, args=(rank, size, how, num_tokens, folder)) for rank in range(size)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        told = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    return {key: max(each[key] for each in told) for key in told[0]}


def draw(results: dict[str, dict[int, dict[str, int]]], path: Path) -> None:
    """Peak memory and bytes sent over the length of a sequence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2), ("peak", "sent"), ("peak memory, MiB", "sent, MiB"), strict=True
    ):
        for number, (label, by_length) in enumerate(results.items()):
            values = [told[key] / 2**20 for told in by_length.values()]
            if any(values):
                style = {"marker": "o", "markersize": 3, "color": f"C{number}", "label": label}
                axes.loglog(list(by_length), values, **style)
        axes.set_xlabel("tokens of a sequence")
        axes.set_title(f"{title}, by process", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--context", type=int, default=4, help="processes that divide a sequence")
    parser.add_argument(
        "--longest", type=int, default=131072, help="tokens of the longest sequence"
    )
    parser.add_argument("--plot", type=Path, help="where to draw it")
    args = parser.parse_args()
    ways = [("dense", 1), ("tiles", 1)]
    ways += [(method, args.context) for method in ("gather", "ring", "ulysses")]
    lengths = [args.longest >> shift for shift in (5, 3, 2, 1, 0)]
    results: dict[str, dict[int, dict[str, int]]] = {}
    print(f"{'':>14} {'tokens':>8} {'mask, KiB':>10} {'peak, MiB':>10} {'sent, MiB':>10}")
    for how, size in ways:
        label = f"{how}, 1 process" if size == 1 else f"{how} x {size}"
        for num_tokens in lengths:
            if how == "dense" and num_tokens > LONGEST_DENSE:
                continue
            told = measured(how, size, num_tokens)
            each = sum(sent_bytes(how, LAYER, size, 1, 4)) if size > 1 else 0  # type: ignore[arg-type]
            told["sent"] = int(each * num_tokens // size)
            results.setdefault(label, {})[num_tokens] = told
            print(
                f"{label:>16} {num_tokens:>8,} {told['mask'] / 1024:>10,.0f} "
                f"{told['peak'] / 2**20:>10,.1f} {told['sent'] / 2**20:>10,.2f}",
                flush=True,
            )
    if args.plot:
        draw(results, args.plot)


if __name__ == "__main__":
    main()
