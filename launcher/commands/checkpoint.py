"""`triax checkpoint`: list, verify, exchange with Hugging Face, convert to DeepSpeed and back."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from triax.checkpoint.folders import (
    CheckpointInfo,
    checkpoints_at,
    problems_of,
    refuse_existing,
    resolve_checkpoint,
)
from triax.checkpoint.huggingface import export_huggingface, import_huggingface
from triax.checkpoint.manifest import read_manifest
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.run_folder import recorded_table, tokenizer_of
from triax.checkpoint.staging import whole
from triax.checkpoint.universal import export_universal, import_universal
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import ExitCode, UserError
from triax.common.files import write_atomically
from triax.common.quantities import format_count, format_seconds
from triax.common.showing import printable
from triax.inference.export_tokens import recorded_tokens, tokenizer_export, unseen_by_training
from triax.launcher.terminal.arguments import as_path, positive_int
from triax.models.config import ModelConfig
from triax.parallel.agreement import RankError
from triax.parallel.dtypes import DTYPES

_EXAMPLE = """\
examples:
  triax checkpoint list runs/my-run
  triax checkpoint verify runs/my-run
  triax checkpoint export runs/my-run --output hf-model --dtype bf16
  triax checkpoint import hf-model --output imported --write-config model.toml
  triax checkpoint convert runs/my-run --to deepspeed --output universal
"""
_MODEL_PREFIX = "model."


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
    export.add_argument("--format", choices=["hf"], default="hf", help="Hugging Face transformers")
    export.add_argument("--output", type=as_path, required=True, metavar="DIR")
    export.add_argument("--dtype", choices=["fp32", "bf16"], help="of the weights (as they are)")
    export.add_argument("--tokenizer", type=as_path, metavar="DIR", help="(the run's)")
    export.add_argument(
        "--seq-len", type=positive_int, metavar="N", help="longest sequence (the run's)"
    )
    import_ = add("import", "turn a local transformers folder into a checkpoint to start from")
    import_.add_argument("path", type=as_path, metavar="HF_DIR", help="with safetensors files")
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
    print(f"{'step':>10}  {'tokens':>8}  {'size':>9}  {'age':>16}  files")
    for info in infos:
        print(_row(info, "bad" if problems[info.path] else "complete"))
    for path, found in problems.items():
        for problem in found:
            print(printable(f"{path.name}: {problem}"))
    print("`triax checkpoint verify` reads every byte; here only sizes were looked at")
    return ExitCode.DONE


def _row(info: CheckpointInfo, state: str) -> str:
    tokens, size, age = "?", "?", "?"
    if info.manifest is not None:
        recorded = info.manifest.record.get("tokens")
        tokens = "-"
        if isinstance(recorded, int) and 0 <= recorded < 2**63:
            tokens = format_count(recorded)
        size = _format_bytes(info.manifest.num_bytes)
        age = format_seconds(max(0.0, info.manifest.age_seconds))
    return f"{info.step:>10}  {tokens:>8}  {size:>9}  {age:>16}  {state}"


def _format_bytes(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


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
    refuse_existing(args.output)
    checkpoint = resolve_checkpoint(args.path)
    record = read_manifest(checkpoint).record
    config = recorded_table(record, "config")
    if "model" not in config:
        raise UserError(f"{checkpoint}: its record holds no model config; it was not made by a run")
    tokenizer, seq_len = _tokenizer(args, config, checkpoint), _seq_len(args, config, checkpoint)
    exported, warning = None, None
    if tokenizer is not None:
        tokens = recorded_tokens(record, tokenizer)
        exported = tokenizer_export(tokenizer, tokens)
        warning = unseen_by_training(tokenizer, tokens)
    tensors = read_tensors(checkpoint, prefix=_MODEL_PREFIX)
    export_huggingface(
        {name.removeprefix(_MODEL_PREFIX): tensor for name, tensor in tensors.items()},
        _model_config(config["model"], checkpoint),
        args.output,
        dtype=DTYPES.get(args.dtype),
        tokenizer=exported,
        seq_len=seq_len,
    )
    without = "" if tokenizer else ", without a tokenizer (--tokenizer adds one)"
    print(f"{checkpoint} exported to {args.output}{without}")
    if warning is not None:
        print(warning)
    return ExitCode.DONE


def _model_config(fields: object, checkpoint: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise UserError(f"{checkpoint}: its recorded model config is not valid: {error}") from error


def _tokenizer(
    args: argparse.Namespace, config: Mapping[str, Any], checkpoint: Path
) -> Path | None:
    if args.tokenizer is not None:
        return Path(args.tokenizer)
    recorded = tokenizer_of(checkpoint, config)
    if recorded is not None and not Path(recorded).exists():
        raise UserError(f"{recorded}: the run's tokenizer is not there; say where: --tokenizer DIR")
    return None if recorded is None else Path(recorded)


def _seq_len(args: argparse.Namespace, config: Mapping[str, Any], checkpoint: Path) -> int:
    seq_len = args.seq_len or recorded_table(config, "data").get("seq_len")
    if not isinstance(seq_len, int) or seq_len < 1:
        raise UserError(f"{checkpoint}: its record holds no data.seq_len; give --seq-len N")
    return seq_len


def _import(args: argparse.Namespace) -> int:
    refuse_existing(args.output)
    if args.write_config is not None:
        refuse_existing(args.write_config)
    model, tensors = import_huggingface(args.path)
    section = tomli_w.dumps({"model": model.model_dump(mode="json", exclude_none=True)})
    record = {
        "imported_from": str(args.path),
        "step": 0,
        "config": {"model": model.model_dump(mode="json")},
    }
    shards = {_MODEL_PREFIX + name: whole(tensor) for name, tensor in tensors.items()}
    try:
        write_checkpoint(args.output, shards, record, step=0)
    except RankError as error:
        raise UserError(f"{args.output}: cannot be written: {error}") from error
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    print(f"{format_count(num_parameters)} parameters imported to {args.output}")
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
