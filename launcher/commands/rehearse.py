"""`triax rehearse`: a step of chosen processes of a large job, on this machine, without a GPU."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from triax.common.errors import ExitCode, UserError
from triax.launcher.commands.bench import refuse_nothing
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.bench_config import bench_config
from triax.launcher.job.control_plane import describe_control_plane
from triax.launcher.job.rehearse import rehearse
from triax.launcher.terminal.arguments import as_path_text, non_negative_float, positive_int
from triax.launcher.terminal.messages import print_note
from triax.models.description import describe
from triax.parallel.layout import Layout
from triax.parallel.stages import schedule_problem
from triax.planning.devices import GIB, RESERVED_GIB
from triax.planning.rehearsal.ranks import chosen_ranks, enough_micro_batches
from triax.planning.rehearsal.report import Rehearsal, as_json, as_text

EXAMPLE = """\
examples:
  triax rehearse run.toml --world-size 1024 --memory 80
  triax rehearse run.toml --world-size 16 --rank 0,5 --json
  triax rehearse --preset llama3-8b --world-size 64 --parallel.tensor=8
  triax rehearse run.toml --world-size 16384 --control-plane

The run's own code builds its engine and takes one step on each of the ranks,
with tensors that have no elements. Exit codes: 0 the messages fit together and
so does the memory; 2 they don't, or the config is wrong. docs/rehearsal.md
explains what is printed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "config",
        type=as_path_text,
        metavar="CONFIG",
        nargs="?",
        help="a run's TOML file; its data isn't read",
    )
    parser.add_argument("--preset", metavar="NAME", help="the model, instead of [model]")
    parser.add_argument(
        "--world-size", type=positive_int, required=True, metavar="N", help="processes of the job"
    )
    parser.add_argument(
        "--rank",
        type=_ranks,
        metavar="N,...",
        help="the processes to rehearse (otherwise a whole pipeline, and the corners of the mesh)",
    )
    parser.add_argument(
        "--micro-batches",
        type=positive_int,
        metavar="N",
        help="of a step, on one process (otherwise as many as show all that more would)",
    )
    parser.add_argument(
        "--processes-per-node",
        type=positive_int,
        default=8,
        metavar="N",
        help="for the picture of the mesh (default: 8)",
    )
    _add_memory(parser)
    parser.add_argument(
        "--control-plane",
        action="store_true",
        help="count what the job costs besides its tensors, and rehearse nothing",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(overrides=())
    parser.usage = f"{parser.prog} [CONFIG] --world-size N [--section.key=value ...]"
    parser.epilog = EXAMPLE


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory",
        type=positive_int,
        metavar="GIB",
        help="of a device: say which ranks need more",
    )
    parser.add_argument(
        "--reserved-gib",
        type=non_negative_float,
        default=RESERVED_GIB,
        metavar="X",
        help=f"of --memory, what CUDA and NCCL take for themselves ({RESERVED_GIB:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Rehearse, and show what came of it.

    Raises:
        ConfigError: with every problem that would keep a step from being taken.
        UserError: there is nothing to rehearse, or no such rank.
    """
    refuse_nothing(args)
    overrides = (*_model(args.preset), *args.overrides)
    config = bench_config(args.config, overrides, "cpu", args.world_size)
    layout = Layout.of(config.parallel, args.world_size)
    if args.control_plane:
        # Its weights, and AdamW's two moments of each.
        num_tensors = 3 * len(describe(config.model).parameters) // layout.pipeline
        print(describe_control_plane(config, args.world_size, args.processes_per_node, num_tensors))
        return ExitCode.DONE
    ranks = args.rank or chosen_ranks(layout)
    if max(ranks) >= args.world_size:
        raise UserError(
            f"--rank {max(ranks)}: a job of {args.world_size} processes has ranks 0 to "
            f"{args.world_size - 1}"
        )
    config, notes = as_rehearsed(config)
    config, few = with_few_micro_batches(config, layout, args.micro_batches)
    notes += few
    recordings = []
    for recording in rehearse(config, ranks, args.world_size, args.processes_per_node):
        recordings.append(recording)
        if Console(stderr=True).is_terminal:
            print_note(f"rank {recording.rank}: {len(recording.messages):,} messages")
    rehearsal = Rehearsal.of(
        layout,
        config.parallel,
        recordings,
        capacity=_capacity(args.memory, args.reserved_gib),
        processes_per_node=args.processes_per_node,
        notes=notes,
    )
    print(json.dumps(as_json(rehearsal)) if args.json else as_text(rehearsal))
    return ExitCode.DONE if rehearsal.is_good else ExitCode.BAD_INPUT


def as_rehearsed(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The config without what needs a device or a drive, and what that means."""
    parallel: dict[str, bool | str] = {}
    notes = []
    if config.parallel.compile:
        parallel["compile"] = False
        notes.append(
            "blocks run as they stand: compiled ones keep less for the backward pass, and no fp32 "
            "logits"
        )
    if config.parallel.async_tensor:
        parallel["async_tensor"] = False
        notes.append("messages of tensor parallelism are sent one after another, not in pieces")
    if config.parallel.offload == "nvme":
        parallel["offload"] = "cpu"
        notes.append("what is to lie on a drive is counted as memory of the machine")
    precision = config.precision.resolved(has_bf16=True)
    if precision != config.precision:
        notes.append('precision.compute = "auto" is taken for bf16, as on GPUs from Ampere on')
    changed = config.parallel.model_copy(update=parallel)
    return config.model_copy(update={"parallel": changed, "precision": precision}), notes


def with_few_micro_batches(
    config: RunConfig, layout: Layout, num: int | None
) -> tuple[RunConfig, list[str]]:
    """The config with so many micro-batches a step, and what that means; by default with as many
    as show all that more would."""
    batch = config.batch
    count = layout.num_micro_batches(batch.global_batch_size, batch.micro_batch_size)
    enough = enough_micro_batches(config.parallel, count) if num is None else num
    if enough >= count:
        return config, []
    problem = schedule_problem(config.parallel, enough)
    if problem is not None:
        raise UserError(f"--micro-batches {enough}: {problem}")
    size = batch.micro_batch_size * layout.data_parallel * enough
    changed = batch.model_copy(update={"global_batch_size": size})
    note = (
        f"{enough} of a step's {count} micro-batches: the others send the same once more each, and "
        "hold no more at once"
    )
    return config.model_copy(update={"batch": changed}), [note]


def _capacity(memory: int | None, reserved: float) -> int | None:
    """Bytes of a device for tensors."""
    if memory is None:
        return None
    if reserved >= memory:
        raise UserError(
            f"--memory {memory}: nothing is left beside the {reserved:g} GiB of --reserved-gib"
        )
    return int((memory - reserved) * GIB)


def _model(preset: str | None) -> tuple[str, ...]:
    return () if preset is None else ("model={}", f"model.preset={preset}")


def _ranks(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"expected ranks such as 0,5, got {text!r}")
    return tuple(sorted(set(map(int, parts))))
