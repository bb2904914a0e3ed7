"""`triax eval`: a checkpoint's loss on prepared data, or its results in public benchmarks."""

from __future__ import annotations

import argparse

from triax.common.errors import UserError
from triax.inference.compare import Comparison, compare
from triax.inference.lm_eval import TaskOptions, run_tasks, task_table
from triax.inference.team import Team
from triax.inference.validation import Sequences, Validation, validate
from triax.launcher.cluster.together import add_team_arguments, run_together
from triax.launcher.terminal.arguments import as_path, as_path_text, count, positive_int

_EXAMPLE = """\
examples:
  triax eval runs/quickstart --data corpora/quickstart/validation
  triax eval runs/a runs/b --data corpora/quickstart/validation
  triax eval runs/quickstart --tasks hellaswag,arc_easy --limit 100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=as_path_text,
        metavar="CHECKPOINT",
        help="a run's or a checkpoint's folder; several are compared with the first",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=as_path_text, metavar="PREFIX", help="shards to evaluate on")
    what.add_argument("--tasks", metavar="NAMES", help="tasks of lm-eval, with commas between")
    _add_data_arguments(parser.add_argument_group("with --data"))
    _add_task_arguments(parser.add_argument_group("with --tasks"))
    add_team_arguments(parser)


def _add_data_arguments(parser: argparse._ArgumentGroup) -> None:
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


def _add_task_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first so many of each task"
    )
    parser.add_argument("--num-fewshot", type=count, metavar="N", help="default: the task's")
    parser.add_argument(
        "--include-path", type=as_path, metavar="DIR", help="task files of your own"
    )
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N")
    parser.add_argument("--output", type=as_path, metavar="FILE", help="results as JSON")
    parser.add_argument(
        "--tokenizer", type=as_path_text, metavar="DIR", help="default: the one of training"
    )


def run(args: argparse.Namespace) -> int:
    """Print loss, perplexity and bits per byte, and how they relate to the run's own validations;
    or the results of tasks.

    Raises:
        UserError: the checkpoint, the data or a task can't be used.
    """
    if args.tasks is not None and len(args.checkpoints) > 1:
        raise UserError("--tasks takes one checkpoint; several are compared with --data")
    return run_together(args, _evaluate)


def _evaluate(args: argparse.Namespace, team: Team) -> int:
    if args.tasks is not None:
        options = TaskOptions(
            tasks=[name for name in args.tasks.split(",") if name],
            limit=args.limit,
            num_fewshot=args.num_fewshot,
            include_path=args.include_path,
            batch_size=args.batch_size,
            output=args.output,
            tokenizer=args.tokenizer,
        )
        results = run_tasks(args.checkpoints[0], options, team)
        if team.is_main:
            print(*task_table(results), sep="\n")
        return 0
    sequences = Sequences(
        args.data,
        seq_len=args.seq_len,
        limit=args.sequences,
        micro_batch_size=args.micro_batch_size,
        mask_documents=args.document_mask,
        compute=args.compute,
    )
    if len(args.checkpoints) > 1:
        comparison = compare(args.checkpoints, sequences, team)
        if team.is_main:
            _show_comparison(comparison)
        return 0
    validation = validate(args.checkpoints[0], sequences, team)
    if team.is_main:
        _show(validation)
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


def _show_comparison(found: Comparison) -> None:
    num_targets = found.compared[0].evaluation.num_targets
    print(f"data         {found.reading.describe()}")
    print(f"targets      {num_targets:,} in {found.num_documents:,} documents")
    if num_targets == 0:
        print("loss         none: there is no target token")
        return
    for compared in found.compared:
        result, difference = compared.evaluation, compared.difference
        bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.6f} bits per byte"
        print(f"{compared.checkpoint}")
        print(f"  loss       {result.loss:.6f}, perplexity {result.perplexity:.4f}{bits}")
        if difference is not None:
            interval = f"95% within {difference.low:+.6f} and {difference.high:+.6f}"
            print(f"  to first   {difference.mean:+.6f} nats per token, {interval}")
