"""`triax eval`: a checkpoint's loss on prepared data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from triax.checkpoint.run_folder import recorded_table
from triax.common.errors import UserError
from triax.common.paths import same_path
from triax.data.read.identity import identify
from triax.data.read.loader import validation_batches
from triax.data.read.source import Source
from triax.inference.load import Loaded, load_checkpoint
from triax.launcher.job.resume import recorded_validation
from triax.launcher.terminal.arguments import as_path_text, positive_int
from triax.training.step.evaluation import Evaluation, mean_loss


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
        "--sequences", type=positive_int, metavar="N", help="only the first so many (default: all)"
    )
    parser.add_argument("--micro-batch-size", type=positive_int, default=8, metavar="N")
    parser.add_argument(
        "--document-mask",
        action=argparse.BooleanOptionalAction,
        help="keep tokens from seeing earlier documents, or not (default: as in training)",
    )
    parser.epilog = "example:\n  triax eval runs/quickstart --data corpora/quickstart/validation\n"


def run(args: argparse.Namespace) -> int:
    """Print loss and perplexity, and how they relate to the run's own validations.

    Raises:
        UserError: the checkpoint or the data can't be used.
    """
    loaded = load_checkpoint(args.checkpoint)
    seq_len = args.seq_len or loaded.seq_len
    if seq_len is None:
        raise UserError(f"{loaded.path}: doesn't say how it was trained: give --seq-len N")
    loaded.refuse_longer(seq_len)
    source = Source.open(args.data, seq_len, loaded.model.config.vocab_size)
    num_sequences = min(args.sequences or source.num_windows, source.num_windows)
    trained_masked = _trained_masked(loaded.record)
    mask = trained_masked if args.document_mask is None else args.document_mask

    def loss_of(number: int) -> Evaluation:
        return _evaluate(loaded, source, number, args.micro_batch_size, mask_documents=mask)

    result = loss_of(num_sequences)
    length = f"{seq_len:,} tokens, documents {'masked' if mask else 'not masked'}"
    print(f"checkpoint   {loaded.path}")
    print(f"data         {args.data}: {num_sequences:,} sequences of {length}")
    if result.num_targets == 0:
        print("loss         none: there is no target token")
        return 0
    print(f"loss         {result.loss:.6f} nats per token over {result.num_targets:,} targets")
    print(f"perplexity   {result.perplexity:.4f}")
    is_alike = (seq_len, mask) == (loaded.seq_len, trained_masked)
    own = _num_own_sequences(loaded.record, args.data, source) if is_alike else None
    if own is not None:
        own = min(own, source.num_windows)
        same = "the same sequences" if own == num_sequences else f"the first {own:,} sequences"
        shown = f": loss {loss_of(own).loss:.6f}" if own < num_sequences else ""
        print(f"run's own    {same}{_precision_note(loaded.record)}{shown}")
    return 0


def _evaluate(
    loaded: Loaded,
    source: Source,
    num_sequences: int,
    micro_batch_size: int,
    *,
    mask_documents: bool,
) -> Evaluation:
    """Over the first so many windows, in fp32."""
    device = next(loaded.model.parameters()).device
    totals = torch.zeros(2, dtype=torch.float64)
    batches = validation_batches(
        source,
        num_sequences,
        micro_batch_size=micro_batch_size,
        dp_rank=0,
        dp_size=1,
        mask_documents=mask_documents,
    )
    with torch.no_grad():
        for batch in batches:
            there = batch.to(device)
            output = loaded.model(there.tokens_BT, there, torch.ones((), device=device))
            totals[0] += output.sums["cross_entropy"].cpu()
            totals[1] += batch.num_targets
    return mean_loss(float(totals[0]), int(totals[1]))


def _trained_masked(record: Mapping[str, Any]) -> bool:
    """Whether the run masks documents, as configs do that don't say."""
    data = recorded_table(recorded_table(record, "config"), "data")
    return data.get("mask_documents") is not False


def _num_own_sequences(record: Mapping[str, Any], prefix: str, source: Source) -> int | None:
    """How many sequences the run's own validations take; None where this isn't their data."""
    config = recorded_table(record, "config")
    path = recorded_table(config, "data").get("validation")
    known = recorded_validation(record)
    if known is not None:
        is_own = known.shards == identify(prefix, source).shards
    else:
        is_own = isinstance(path, str) and same_path(Path(path), Path(prefix))
    batches = recorded_table(config, "eval").get("batches")
    size = recorded_table(config, "batch").get("global_batch_size")
    if not (is_own and isinstance(batches, int) and isinstance(size, int) and batches * size > 0):
        return None
    return batches * size


def _precision_note(record: Mapping[str, Any]) -> str:
    compute = recorded_table(recorded_table(record, "config"), "precision").get("compute")
    return "" if compute in (None, "fp32") else f", computed in {compute} there and in fp32 here"
