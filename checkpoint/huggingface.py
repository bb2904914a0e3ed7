"""Model folders that Hugging Face transformers loads: written from our tensors, and read.

What differs between families is in `formats/`. Both ways are bitwise. Only safetensors files are
read: the older `.bin` files are pickles, which can run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from triax.checkpoint.folders import new_folder
from triax.checkpoint.formats import format_of, tensor_table, to_huggingface
from triax.checkpoint.formats.table import Theirs
from triax.checkpoint.huggingface_tokenizer import TokenizerExport, copy_tokenizer
from triax.common.errors import UserError
from triax.common.files import open_regular, read_regular
from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, describe

_MAX_FILE_BYTES = 5 * 10**9
_MAX_JSON_BYTES = 1 << 28
"""The largest tokenizers have some 30 MB."""
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_THEIR_HEAD = "lm_head.weight"
_MOST_ELEMENTS = 1 << 62
"""Of a tensor: torch counts its bytes in 64 bits."""


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, by our names; weights are (out, in).

    Raises:
        UserError: the sizes are beyond what torch can count.
    """
    table = describe(model).parameters
    if any(row.num_elements >= _MOST_ELEMENTS for row in table.values()):
        raise UserError("no machine holds a model of these sizes")
    return {name: row.shape for name, row in table.items()}


def export_huggingface(
    tensors: Mapping[str, torch.Tensor],
    model: ModelConfig,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: TokenizerExport | None = None,
    seq_len: int,
    max_file_bytes: int = _MAX_FILE_BYTES,
) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    Args:
        tensors: whole parameters by our names, on the CPU.
        dtype: cast the weights to it; None keeps each as it is.
        tokenizer: it is copied, and the model's files name its special tokens.
        seq_len: the longest sequence trained on, in tokens.
        max_file_bytes: weights above this are spread over several files.

    Raises:
        UserError: the model cannot be expressed there, the tensors are not this model's, or the
            folder exists or cannot be written.
    """
    shapes = parameter_shapes(model)
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise UserError(f"{unknown[0]}: not a weight of the model that the [model] section tells")
    checked = {name: _checked(tensors, name, shape) for name, shape in shapes.items()}
    weights = {theirs.name: theirs.join(checked).to(dtype=dtype) for theirs in tensor_table(model)}
    stored_as = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    special_tokens = {} if tokenizer is None else dict(tokenizer.ids)
    config = to_huggingface(model, dtype=stored_as, seq_len=seq_len, special_tokens=special_tokens)
    with new_folder(output) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / _GENERATION, _generation_settings(tokenizer))
        _write_weights(folder, weights, max_file_bytes)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)


def _generation_settings(tokenizer: TokenizerExport | None) -> dict[str, Any]:
    """How text is generated: as the file beside the tokenizer says, which a model that was imported
    brought along, ending with its tokens and ours."""
    if tokenizer is None:
        return {}
    folder = tokenizer.path if tokenizer.path.is_dir() else tokenizer.path.parent
    path = folder / _GENERATION
    theirs = read_json(path) if path.is_file() else {}
    settings = theirs | dict(tokenizer.ids)
    if len(ends := list(dict.fromkeys(end_tokens(tokenizer.ids) + end_tokens(theirs)))) > 1:
        settings["eos_token_id"] = ends
    return settings


def end_tokens(settings: Mapping[str, Any]) -> list[Any]:
    """What `eos_token_id` names, which is nothing, one token or a list."""
    named = settings.get("eos_token_id")
    return named if isinstance(named, list) else [] if named is None else [named]


def _checked(
    tensors: Mapping[str, torch.Tensor], name: str, expected: tuple[int, ...]
) -> torch.Tensor:
    if name not in tensors:
        raise UserError(f"{name}: not among the weights; the [model] section expects {expected}")
    if tensors[name].shape != expected:
        shape = tuple(tensors[name].shape)
        raise UserError(f"{name}: {shape}, the [model] section expects {expected}")
    return tensors[name]


def _write_weights(folder: Path, weights: dict[str, torch.Tensor], max_file_bytes: int) -> None:
    parts: list[dict[str, torch.Tensor]] = [{}]
    num_bytes = 0
    for name, tensor in weights.items():
        if parts[-1] and num_bytes + tensor.nbytes > max_file_bytes:
            parts.append({})
            num_bytes = 0
        parts[-1][name] = tensor
        num_bytes += tensor.nbytes
    if len(parts) == 1:
        save_tensors(weights, folder / _WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_tensors(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / _INDEX, index)


def save_tensors(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file."""
    path.touch()
    mode = path.stat().st_mode  # by the umask; safetensors' own are for the owner's eyes only
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(mode & 0o777)


def import_huggingface(folder: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Read a local model folder of transformers.

    Returns:
        The model's shape, and its parameters by our names, each in its own dtype. With tied
        embeddings there is no head among them.

    Raises:
        UserError: files are missing, damaged or pickles, the architecture is another, or the
            weights are not what the config promises.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: not a folder; download the model first and give its local folder"
        )
    config_path = folder / "config.json"
    read, config = dict(_read_weights(folder)), read_json(config_path)
    theirs = format_of(config, str(config_path))
    known = {name: theirs.known_as(name) for name in read}
    weights = {ours: read[name] for name, ours in known.items() if ours is not None}
    model = theirs.from_huggingface(
        config, is_tied=_THEIR_HEAD not in weights, where=str(config_path)
    )
    shapes, table = parameter_shapes(model), tensor_table(model)
    if model.tie_embeddings:
        _drop_tied_head(weights, table[0].name, folder)
    names = {theirs.name for theirs in table}
    unknown, missing = sorted(weights.keys() - names), sorted(names - weights.keys())
    if unknown or missing:
        raise UserError(
            f"{folder}: its weights are not those that config.json promises"
            + (f"; missing: {', '.join(missing[:3])}" if missing else "")
            + (f"; unknown: {', '.join(unknown[:3])}" if unknown else "")
        )
    tensors = _ours(weights, table, model)
    for name, shape in shapes.items():
        _checked(tensors, name, shape)
        if not tensors[name].is_floating_point():
            raise UserError(f"{folder}: {name} is {tensors[name].dtype}, expected floating point")
    return model, tensors


def _ours(
    weights: Mapping[str, torch.Tensor], table: Sequence[Theirs], model: ModelConfig
) -> dict[str, torch.Tensor]:
    """Our tensors of theirs. What isn't trained, and they don't have, is as it begins."""
    rows = describe(model).parameters
    shapes = {name: row.shape for name, row in rows.items()}
    parts = [part for theirs in table for part in theirs.split(weights[theirs.name], shapes)]
    tensors = dict(parts)
    experts: dict[str, list[torch.Tensor]] = {}
    for name, part in parts:
        if rows[name].role in EXPERTS:
            _checked({name: part}, name, shapes[name][1:])
            experts.setdefault(name, []).append(part)
    tensors |= {name: torch.stack(matrices) for name, matrices in experts.items()}
    for name, row in rows.items():
        if not row.is_trained and name not in tensors:
            tensors[name] = torch.full(row.shape, row.init_value)
    return tensors


def _read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, from the file that the index names for it if there is an index."""
    index = _read_index(folder)
    for path in [folder / _WEIGHTS] if index is None else sorted(set(index.values())):
        expected = None if index is None else {name for name in index if index[name] == path}
        try:
            open_regular(path).close()
            with safe_open(path, framework="pt") as file:
                found = set(file.keys())
                if expected is not None and found != expected:
                    _refuse_other_place(path, found, expected)
                # Old exports hold RoPE's frequencies, which follow from the config.
                for name in sorted(n for n in found if not n.endswith("rotary_emb.inv_freq")):
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error


def _refuse_other_place(path: Path, found: set[str], expected: set[str]) -> None:
    extra, missing = sorted(found - expected), sorted(expected - found)
    raise UserError(
        f"{path}: holds other tensors than {_INDEX} says: "
        + "; ".join(
            [f"{name} too, of which the index says another place or nothing" for name in extra[:1]]
            + [f"not {name}" for name in missing[:1]]
        )
        + ". Fetch the model again"
    )


def _read_index(folder: Path) -> dict[str, Path] | None:
    """The file of each tensor, or None where all are in one."""
    has_one, has_index = ((folder / name).exists() for name in (_WEIGHTS, _INDEX))
    if has_one and has_index:
        raise UserError(f"{folder}: has both {_WEIGHTS} and {_INDEX}; remove what isn't the model")
    if has_one:
        return None
    if has_index:
        given = read_json(folder / _INDEX).get("weight_map")
        weight_map: dict[str, Any] = given if isinstance(given, dict) else {"": None}
        files = weight_map.values()
        if not all(isinstance(file, str) and file and Path(file).name == file for file in files):
            raise UserError(f"{folder / _INDEX}: its weight_map does not name files of this folder")
        return {name: folder / file for name, file in weight_map.items()}
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise UserError(
            f"{folder}: its weights are pickles, which can run code when they are loaded; "
            "get the model's safetensors files, or convert it with transformers' save_pretrained"
        )
    raise UserError(f"{folder}: no weights: expected {_WEIGHTS} or {_INDEX}")


def _drop_tied_head(weights: dict[str, torch.Tensor], embedding: str, folder: Path) -> None:
    head, rows = weights.pop(_THEIR_HEAD, None), weights.get(embedding)
    if head is not None and rows is not None and not torch.equal(head, rows):
        raise UserError(
            f"{folder}: config.json says tie_word_embeddings, but {_THEIR_HEAD} differs from "
            "the embedding; correct one of them"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a model's folder.

    Raises:
        UserError: there is none.
    """
    try:
        content = json.loads(read_regular(path, _MAX_JSON_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of a model's folder."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
