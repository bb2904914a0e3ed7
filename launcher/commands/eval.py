"""`triax eval`: a checkpoint's loss on prepared data."""

from __future__ import annotations

import argparse

import torch

from triax.common.errors import UserError
from triax.common.tokens import IGNORE_INDEX
from triax.data.read.loader import validation_batches
from triax.data.read.source import Source
from triax.inference.load import load_checkpoint
from triax.launcher.terminal.arguments import as_path_text, positive_int
from triax.training.step.evaluation import mean_loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
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
        "--sequences", type=positive_int, metavar="N", help="only the first so many"
    )
    parser.add_argument("--micro-batch-size", type=positive_int, default=8, metavar="N")
    parser.add_argument(
        "--no-document-mask", action="store_true", help="let tokens see earlier documents"
    )
    parser.epilog = "example:\n  triax eval runs/quickstart --data corpora/quickstart/validation\n"


def run(args: argparse.Namespace) -> int:
    """Print loss and perplexity.

    Raises:
        UserError: the checkpoint or the data can't be used.
    """
    loaded = load_checkpoint(args.checkpoint)
    seq_len = args.seq_len or loaded.seq_len
    if seq_len is None:
        raise UserError(f"{loaded.path}: doesn't say how it was trained: give --seq-len N")
    source = Source.open(args.data, seq_len, loaded.model.config.vocab_size)
    num_sequences = min(args.sequences or source.num_windows, source.num_windows)
    device = next(loaded.model.parameters()).device
    totals = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for batch in validation_batches(
            source,
            num_sequences,
            micro_batch_size=args.micro_batch_size,
            dp_rank=0,
            dp_size=1,
            mask_documents=not args.no_document_mask,
        ):
            ids = batch.document_ids_BT
            sums = loaded.model(
                batch.tokens_BT.to(device),
                batch.targets_BT.to(device),
                None if ids is None else ids.to(device),
                torch.ones((), device=device),
            )
            totals[0] += sums.cross_entropy.cpu()
            totals[1] += (batch.targets_BT != IGNORE_INDEX).sum()
    result = mean_loss(float(totals[0]), int(totals[1]))
    print(f"checkpoint   {loaded.path}")
    print(f"data         {args.data}: {num_sequences:,} sequences of {seq_len:,} tokens")
    if result.num_targets == 0:
        print("loss         none: there is no target token")
        return 0
    print(f"loss         {result.loss:.6f} nats per token over {result.num_targets:,} targets")
    print(f"perplexity   {result.perplexity:.4f}")
    return 0
