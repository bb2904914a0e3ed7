"""`triax checkpoint`: list, verify, exchange with Hugging Face, convert to DeepSpeed and back."""

from __future__ import annotations

import argparse

import tomli_w

from triax.checkpoint.folders import (
    checkpoints_at,
    problems_of,
    refuse_existing,
    resolve_checkpoint,
)
from triax.checkpoint.importing import import_adapters, import_checkpoint
from triax.checkpoint.peft import CONFIG_FILE
from triax.checkpoint.universal import export_universal, import_universal
from triax.common.errors import ExitCode, UserError
from triax.common.files import is_file, write_atomically
from triax.common.quantities import format_count
from triax.common.showing import printable
from triax.inference.export import export_run
from triax.launcher.terminal.arguments import as_path, positive_int
from triax.launcher.terminal.checkpoints import CHECKPOINT_COLUMNS, checkpoint_row
from triax.models.counts import num_parameters
from triax.parallel.agreement import RankError
from triax.parallel.dtypes import DTYPES

_EXAMPLE = """\
examples:
  triax checkpoint list runs/my-run
  triax checkpoint verify runs/my-run
  triax checkpoint export runs/my-run --output hf-model --dtype bf16
  triax checkpoint import hf-model --output imported --write-config model.toml
  triax checkpoint export runs/my-lora-run --format peft --output adapters
  triax checkpoint import adapters --base imported --output imported-adapters
  triax checkpoint convert runs/my-run --to deepspeed --output universal
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    parser.epilog = _EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=text,
            description=text,
            epilog=_EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    either = "a checkpoint's folder or a run's"
    add("list", "show a run's checkpoints").add_argument("path", type=as_path, metavar="RUN_DIR")
    verify = add("verify", "read every byte of a checkpoint, or of all of a run's")
    verify.add_argument("path", type=as_path, metavar="CHECKPOINT", help=either)
    export = add("export", "write the model for other programs")
    export.add_argument("path", type=as_path, metavar="CHECKPOINT", help=f"{either} (its newest)")
    export.add_argument(
        "--format", choices=["hf", "peft"], default="hf", help="transformers, or PEFT's of adapters"
    )
    export.add_argument("--output", type=as_path, required=True, metavar="DIR")
    export.add_argument("--dtype", choices=["fp32", "bf16"], help="of the weights (as they are)")
    export.add_argument("--tokenizer", type=as_path, metavar="DIR", help="(the run's)")
    export.add_argument(
        "--seq-len", type=positive_int, metavar="N", help="longest sequence (the run's)"
    )
    import_ = add("import", "turn a folder of transformers or PEFT into a checkpoint to start from")
    import_.add_argument("path", type=as_path, metavar="HF_DIR", help="with safetensors files")
    import_.add_argument(
        "--base", type=as_path, metavar="CHECKPOINT", help="of PEFT's: the model of the adapters"
    )
    import_.add_argument("--output", type=as_path, required=True, metavar="CHECKPOINT_DIR")
    import_.add_argument(
        "--write-config", type=as_path, metavar="FILE", help="write the [model] section that fits"
    )
    convert = add("convert", "turn a checkpoint into DeepSpeed's universal format, or back")
    convert.add_argument("path", type=as_path, metavar="CHECKPOINT", help="what is converted")
    convert.add_argument("--to", choices=["deepspeed", "native"], required=True)
    convert.add_argument("--output", type=as_path, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Run the action; `verify` ends with `ExitCode.BAD_INPUT` if a checkpoint is bad.

    Raises:
        UserError: no checkpoint is at the path, or it cannot be read, converted or written.
    """
    actions = {
        "list": _list, "verify": _verify, "export": _export, "import": _import,
        "convert": _convert,
    }  # fmt: skip
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    infos = checkpoints_at(args.path)
    problems = {info.path: problems_of(info, contents=False) for info in infos}
    print(infos[0].path.parent)
    print(CHECKPOINT_COLUMNS)
    for info in infos:
        print(checkpoint_row(info, "bad" if problems[info.path] else "complete"))
    for path, found in problems.items():
        for problem in found:
            print(printable(f"{path.name}: {problem}"))
    print("`triax checkpoint verify` reads every byte; here only sizes were looked at")
    return ExitCode.DONE


def _verify(args: argparse.Namespace) -> int:
    all_good = True
    for info in checkpoints_at(args.path):
        problems = problems_of(info)
        all_good = all_good and not problems
        print(f"{info.path}: {'bad' if problems else 'good'}")
        for problem in problems:
            print(f"  {printable(problem)}")
    return ExitCode.DONE if all_good else ExitCode.BAD_INPUT


def _export(args: argparse.Namespace) -> int:
    done = export_run(
        args.path,
        args.output,
        format=args.format,
        dtype=DTYPES.get(args.dtype),
        tokenizer=args.tokenizer,
        seq_len=args.seq_len,
    )
    without = "" if done.tokenizer else ", without a tokenizer (--tokenizer adds one)"
    print(f"{done.checkpoint} exported to {args.output}{without}")
    if done.warning is not None:
        print(done.warning)
    return ExitCode.DONE


def _import(args: argparse.Namespace) -> int:
    if args.write_config is not None:
        refuse_existing(args.write_config)
    if is_file(args.path / CONFIG_FILE):
        if args.base is None:
            raise UserError(
                f"{args.path}: holds adapters of PEFT: name the checkpoint of their model with "
                "--base"
            )
        model = import_adapters(args.path, args.output, args.base)
    elif args.base is not None:
        raise UserError(f"{args.path}: --base is for PEFT's folders, which have a {CONFIG_FILE}")
    else:
        model = import_checkpoint(args.path, args.output)
    section = tomli_w.dumps({"model": model.model_dump(mode="json", exclude_none=True)})
    print(f"{format_count(num_parameters(model))} parameters imported to {args.output}")
    print(f'start a run from them with checkpoint.init_from = "{args.output}" and\n\n{section}')
    if args.write_config is not None:
        write_atomically(args.write_config, section)
        print(f"this [model] section stands in {args.write_config}")
    return ExitCode.DONE


def _convert(args: argparse.Namespace) -> int:
    try:
        if args.to == "deepspeed":
            num_weights = export_universal(resolve_checkpoint(args.path), args.output)
        else:
            num_weights = import_universal(args.path, args.output)
    except (OSError, RankError) as error:
        raise UserError(f"{args.output}: cannot be written: {error}") from error
    print(
        f"{args.path} converted to {args.output}: {num_weights} weight tensors, "
        "with the moments that they have"
    )
    return ExitCode.DONE
