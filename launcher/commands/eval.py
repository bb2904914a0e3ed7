"""`triax eval`: a checkpoint's loss on prepared data."""

from __future__ import annotations

import argparse

from triax.inference.validation import Sequences, Validation, validate
from triax.launcher.terminal.arguments import as_path_text, positive_int

_EXAMPLE = "example:\n  triax eval runs/quickstart --data corpora/quickstart/validation\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "checkpoint",
        type=as_path_text,
        metavar="CHECKPOINT",
        help="a run's or a checkpoint's folder",
    )
    parser.add_argument(
        "--data", type=as_path_text, required=True, metavar="PREFIX", help="shards to evaluate on"
    )
    parser.add_argument("--seq-len", type=positive_int, metavar="N", help="default: as in training")
    parser.add_argument(
        "--sequences", type=positive_int, metavar="N", help="only the first so many (default: all)"
    )
    parser.add_argument(
        "--micro-batch-size", type=positive_int, metavar="N", help="default: as in training"
    )
    parser.add_argument(
        "--document-mask",
        action=argparse.BooleanOptionalAction,
        help="keep tokens from seeing earlier documents, or not (default: as in training)",
    )
    parser.add_argument(
        "--compute", choices=["fp32", "bf16", "fp16", "fp8"], help="default: as in training"
    )


def run(args: argparse.Namespace) -> int:
    """Print loss, perplexity and bits per byte, and how they relate to the run's own validations.

    Raises:
        UserError: the checkpoint or the data can't be used.
    """
    sequences = Sequences(
        args.data,
        seq_len=args.seq_len,
        limit=args.sequences,
        micro_batch_size=args.micro_batch_size,
        mask_documents=args.document_mask,
        compute=args.compute,
    )
    _show(validate(args.checkpoint, sequences))
    return 0


def _show(found: Validation) -> None:
    result = found.evaluation
    print(f"checkpoint   {found.checkpoint}")
    print(f"data         {found.reading.describe()}")
    if result.num_targets == 0:
        print("loss         none: there is no target token")
        return
    print(f"loss         {result.loss:.6f} nats per token over {result.num_targets:,} targets")
    print(f"perplexity   {result.perplexity:.4f}")
    if result.bits_per_byte is not None:
        print(f"bits/byte    {result.bits_per_byte:.6f} over {result.num_bytes:,} bytes")
    print(f"computed in  {found.compute}")
    if found.own is not None:
        shown = f"the first {found.own_sequences:,} sequences: loss {found.own.loss:.6f}"
        print(f"run's own    {shown}")
    elif found.own_sequences == found.reading.num_sequences:
        print("run's own    the same sequences")
