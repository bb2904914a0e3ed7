"""Model folders against transformers itself: same names, same bytes, same logits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from triax.checkpoint.formats import tensor_table
from triax.checkpoint.huggingface import (
    export_huggingface,
    import_huggingface,
    parameter_shapes,
)
from triax.checkpoint.huggingface_tokenizer import TokenizerExport
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.families import model_config
from triax.models.families.llama import LlamaConfig
from triax.models.layers.transformer import Transformer

transformers = pytest.importorskip("transformers")

SMALL = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_hidden_size": 48,
    "vocab_size": 61,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_seq_len": 16,
}
YARN = {"kind": "yarn", "factor": 4.0, "original_seq_len": 16}
YARN_TABLE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "multi-head": {"num_kv_heads": 4},
    "tied": {"tie_embeddings": True},
    "theta and eps": {"rope_theta": 500_000.0, "norm_eps": 1e-3},
    "llama3 rope": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500_000.0},
    "yarn rope": {"rope_scaling": YARN, "head_dim": 32},
    "yarn rope at a high theta": {
        "rope_scaling": YARN | {"beta_fast": 2.0, "beta_slow": 0.5},
        "rope_theta": 500_000.0,
    },
    "qk-norm": {"qk_norm": True, "norm_eps": 1e-3},
    "qk-norm, tied, llama3 rope": {
        "qk_norm": True,
        "tie_embeddings": True,
        "rope_scaling": LLAMA3_ROPE,
    },
    "window": {"sliding_window": 5},
    "window, llama3 rope": {"sliding_window": 5, "rope_scaling": LLAMA3_ROPE},
    "window, qk-norm": {"sliding_window": 5, "qk_norm": True},
    "free head dimension": {"head_dim": 16},
    "undivided hidden size": {"hidden_size": 30, "head_dim": 8},
}
ARCHITECTURES = {
    "qk-norm": "Qwen3ForCausalLM",
    "qk-norm, tied, llama3 rope": "Qwen3ForCausalLM",
    "window, qk-norm": "Qwen3ForCausalLM",
    "window": "MistralForCausalLM",
    "window, llama3 rope": "MistralForCausalLM",
    "undivided hidden size": "MistralForCausalLM",
}
SEQ_LEN = 24
LLAMA3_TABLE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "theta in rope_scaling": (
        "grouped queries",
        {"rope_theta": None, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ),
    "theta in a scaled rope_scaling": (
        "grouped queries",
        {"rope_theta": None, "rope_scaling": LLAMA3_TABLE | {"rope_theta": 5e5}},
    ),
    "everything everywhere": (
        "grouped queries",
        {
            "rope_theta": 5e5,
            "rope_scaling": LLAMA3_TABLE | {"rope_theta": 5e5},
            "rope_parameters": LLAMA3_TABLE | {"rope_theta": 5e5},
        },
    ),
    "theta outside of rope_parameters": (
        "grouped queries",
        {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": LLAMA3_TABLE},
    ),
    "no theta": ("grouped queries", {"rope_theta": None, "rope_scaling": None}),
    "layer types of no window": ("qk-norm", {"sliding_window": 4}),
    "layer types of a window": ("window, qk-norm", {"layer_types": ["sliding_attention"] * 2}),
    "yarn with its defaults": ("yarn rope", {"rope_scaling": YARN_TABLE | {"truncate": True}}),
    "window by index": ("window, qk-norm", {"layer_types": None}),
    "default window": ("window", {"sliding_window": None}),
}
"""What `config.json` may say otherwise than ours: the exported shape, and what is changed; None
takes a key out."""


def config_of(shape: str) -> ModelConfig:
    return model_config(**SMALL | SHAPES[shape])


def weights_of(
    model: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Weights large enough that attention, norms and positions all show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.3 * torch.randn(shape, generator=generator)).to(dtype)
        + (name.endswith("norm.weight"))
        for name, shape in parameter_shapes(model).items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def our_model(model: ModelConfig, weights: dict[str, torch.Tensor]) -> Transformer:
    ours = Transformer(model).to(next(iter(weights.values())).dtype)
    tied = {"head.weight": weights["embedding.weight"]} if model.tie_embeddings else {}
    ours.load_state_dict(weights | tied)
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_computes_our_logits(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    model = config_of(shape)
    weights = weights_of(model, dtype)
    export_huggingface(weights, model, tmp_path / "hf", seq_len=SEQ_LEN)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(theirs).__name__ == ARCHITECTURES.get(shape, "LlamaForCausalLM")
    ours = our_model(model, {name: weight.float() for name, weight in weights.items()})
    tokens_BT = torch.randint(
        model.vocab_size, (3, SEQ_LEN), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours.logits(tokens_BT), theirs.eval()(tokens_BT).logits
    assert ours_BTV.std() > 0.1
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["grouped queries", "qk-norm", "window", "llama3 rope"])
def test_the_dtype_of_the_weights_is_the_one_loaded(tmp_path: Path, shape: str) -> None:
    model = config_of(shape)
    export_huggingface(weights_of(model, torch.bfloat16), model, tmp_path / "hf", seq_len=SEQ_LEN)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert theirs.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES)
def test_export_then_import_is_bitwise(tmp_path: Path, shape: str) -> None:
    model = config_of(shape)
    weights = weights_of(model, torch.bfloat16)
    export_huggingface(weights, model, tmp_path / "hf", seq_len=SEQ_LEN)
    read_model, read_weights = import_huggingface(tmp_path / "hf")
    assert read_model == model
    assert same(read_weights, weights)


@pytest.mark.parametrize("shape", SHAPES)
def test_their_folder_imported_and_exported_has_the_same_bytes(tmp_path: Path, shape: str) -> None:
    model = config_of(shape)
    export_huggingface(weights_of(model), model, tmp_path / "first", seq_len=SEQ_LEN)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "first")
    torch.manual_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    theirs.save_pretrained(tmp_path / "theirs")
    read_model, weights = import_huggingface(tmp_path / "theirs")
    assert read_model == model
    export_huggingface(weights, read_model, tmp_path / "ours", seq_len=SEQ_LEN)
    name = "model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_large_weights_are_spread_over_files(tmp_path: Path) -> None:
    model = config_of("grouped queries")
    weights = weights_of(model)
    export_huggingface(weights, model, tmp_path / "hf", seq_len=SEQ_LEN, max_file_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "hf" / file).stat().st_size < 25_000 for file in files)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.equal(theirs.lm_head.weight, weights["head.weight"])
    assert same(import_huggingface(tmp_path / "hf")[1], weights)


def test_the_weights_are_cast_on_request(tmp_path: Path) -> None:
    model = config_of("grouped queries")
    weights = weights_of(model)
    export_huggingface(weights, model, tmp_path / "hf", seq_len=SEQ_LEN, dtype=torch.bfloat16)
    _, read = import_huggingface(tmp_path / "hf")
    assert same(read, {name: weight.bfloat16() for name, weight in weights.items()})


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        ["def f(x):\n    return x\n"] * 9,
        tokenizers.trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|pad|>", "<|endoftext|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("shape", ["grouped queries", "qk-norm", "window"])
def test_the_tokenizer_comes_along(
    tmp_path: Path, tokenizer: Path, shape: str, is_named: bool
) -> None:
    from tokenizers import Tokenizer

    export = TokenizerExport(tokenizer)
    if is_named:
        export = TokenizerExport(tokenizer, {"eos_token": "<|endoftext|>"}, {"eos_token_id": 1})
    model = model_config(**SMALL | SHAPES[shape] | {"vocab_size": 300})
    export_huggingface(weights_of(model), model, tmp_path / "hf", tokenizer=export, seq_len=SEQ_LEN)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    for text in ("def f(x):", "  leading", "ünï\t\r\n ", "<|endoftext|>a"):
        assert theirs.encode(text) == ours.encode(text).ids
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == (1 if is_named else None)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert loaded.generation_config.eos_token_id == (1 if is_named else None)
    assert loaded.config.eos_token_id == (1 if is_named else None)
    assert loaded.config.bos_token_id is None


@pytest.mark.parametrize("max_file_bytes", [5_000, 5 * 10**9])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, max_file_bytes: int) -> None:
    model = config_of("tied")
    before = os.umask(0o027)
    try:
        export_huggingface(
            weights_of(model), model, tmp_path / "hf", seq_len=SEQ_LEN,
            max_file_bytes=max_file_bytes,
        )  # fmt: skip
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "hf").iterdir()} == {0o640}


def test_a_family_without_a_table_is_refused() -> None:
    class MineConfig(LlamaConfig):
        family: Literal["mine"] = "mine"  # type: ignore[assignment]

    with pytest.raises(UserError, match=r'family "mine" has no form .* only llama and gpt2'):
        tensor_table(MineConfig.model_validate(SMALL))


def test_a_soft_cap_cannot_be_exported(tmp_path: Path) -> None:
    model = model_config(**SMALL | {"logit_softcap": 30.0})
    with pytest.raises(UserError, match="logit_softcap"):
        export_huggingface(weights_of(model), model, tmp_path / "hf", seq_len=SEQ_LEN)
    assert not (tmp_path / "hf").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    model = config_of("tied")
    (tmp_path / "hf").mkdir()
    export_huggingface(weights_of(model), model, tmp_path / "hf", seq_len=SEQ_LEN)
    with pytest.raises(UserError, match="exists already"):
        export_huggingface(weights_of(model), model, tmp_path / "hf", seq_len=SEQ_LEN)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_huggingface(weights_of(model), model, tmp_path / "file" / "hf", seq_len=SEQ_LEN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "hf"]


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_of_another_model_are_refused(tmp_path: Path, change: str) -> None:
    model = config_of("grouped queries")
    weights = weights_of(model)
    if change == "missing":
        del weights["blocks.1.mlp.up.weight"]
    else:
        weights["blocks.1.mlp.up.weight"] = torch.zeros(3, 3)
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.up\.weight"):
        export_huggingface(weights, model, tmp_path / "hf", seq_len=SEQ_LEN)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    model = config_of("tied")
    export_huggingface(weights_of(model), model, tmp_path / "hf", seq_len=SEQ_LEN)
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"model_type": None}, "model_type None"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position"),
        ({"rope_scaling": YARN_TABLE | {"truncate": False}}, "only true"),
        ({"rope_scaling": YARN_TABLE | {"attention_factor": 2.0}}, "isn't understood"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": 3}, "wrong type"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "is given as 5"),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta is given as"),
        ({"rope_scaling": {"type": "default"}, "rope_parameters": LLAMA3_TABLE}, "contradicts"),
        ({"rope_scaling": LLAMA3_TABLE | {"factor": 4.0}, "rope_parameters": LLAMA3_TABLE},
         "contradicts rope_parameters"),
        ({"rope_scaling": LLAMA3_TABLE | {"type": "default"}}, "contradicts rope_type"),
        ({"rope_scaling": LLAMA3_TABLE, "original_max_position_embeddings": 99}, "given twice"),
        ({"rope_scaling": LLAMA3_TABLE | {"attention_factor": 2.0}}, "isn't understood"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor isn't understood"),
        ({"rope_parameters": {"full_attention": LLAMA3_TABLE}}, "full_attention isn't understood"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"sliding_window": 4}, "Llama has none"),
        ({"layer_types": ["sliding_attention"] * 2}, "without a sliding window"),
        ({"layer_types": ["full_attention"]}, "expected a list of 2"),
        ({"layer_types": 3}, "expected a list of 2"),
        ({"model_type": "mistral", "sliding_window": 4,
          "layer_types": ["full_attention", "sliding_attention"]}, "only some layers"),
        ({"model_type": "mistral", "sliding_window": 4, "layer_types": ["full_attention"] * 2},
         "with a window of 4"),
        ({"model_type": "mistral", "sliding_window": 4, "layer_types": ["chunked_attention"] * 2},
         "'chunked_attention' with a window of 4"),
        ({"model_type": "qwen3", "use_sliding_window": False, "sliding_window": 4,
          "max_window_layers": 0, "layer_types": ["sliding_attention"] * 2}, "contradict"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4,
          "max_window_layers": 0, "layer_types": ["full_attention"] * 2}, "contradict"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4,
          "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"]},
         "only some layers"),
        ({"rope_parameters": [1]}, "wrong type"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2"),
        ({"num_hidden_layers": 1}, "unknown: model.layers.1"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: expected a number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected a number up to 10,000"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers: expected a number up to 10,000"),
        ({"max_window_layers": 10**18, "model_type": "qwen3"}, "q_norm"),
        ({"vocab_size": 10**30}, "vocab_size: Input should be less than 2147483648"),
        ({"hidden_size": 2**62}, "hidden_size: Input should be less than 2147483648"),
        ({"head_dim": 10**9}, "expects \\(4000000000, 32\\)"),
        ({"vocab_size": 60}, "expects \\(60, 32\\)"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"num_attention_heads": 0}, "num_heads"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4,
          "max_window_layers": 1}, "only some layers"),
    ],
)  # fmt: skip
def test_other_architectures_are_refused(exported: Path, change: Any, message: str) -> None:
    path = exported / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        import_huggingface(exported)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_config_mean_what_they_mean_to_transformers(
    tmp_path: Path, variant: str
) -> None:
    shape, change = VARIANTS[variant]
    ours = config_of(shape)
    export_huggingface(weights_of(ours), ours, tmp_path / "hf", seq_len=SEQ_LEN)
    path = tmp_path / "hf" / "config.json"
    changed = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    config, tensors = import_huggingface(tmp_path / "hf")
    model = Transformer(config)
    model.load_state_dict(tensors, strict=not config.tie_embeddings)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="float32")
    tokens = torch.randint(0, 61, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(tokens), theirs(tokens).logits, atol=2e-5, rtol=2e-5
        )


def two_files(exported: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Its weights over two files, by an index that is right."""
    from safetensors.torch import load_file, save_file

    weights = load_file(exported / "model.safetensors")
    (exported / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: "a.safetensors" if name < names[5] else "b.safetensors" for name in names}
    for file in set(places.values()):
        save_file({n: weights[n] for n in names if places[n] == file}, exported / file)
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return weights, places


def test_the_index_is_followed(exported: Path) -> None:
    before = import_huggingface(exported)[1]
    two_files(exported)
    after = import_huggingface(exported)[1]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["second copy", "of no index", "elsewhere", "both"])
def test_an_index_that_tells_otherwise_is_refused(exported: Path, kind: str) -> None:
    from safetensors.torch import save_file

    weights, places = two_files(exported)
    first = min(places)
    held = {name: tensor for name, tensor in weights.items() if places[name] == "b.safetensors"}
    if kind == "second copy":
        save_file(held | {first: weights[first] + 1}, exported / "b.safetensors")
    elif kind == "of no index":
        save_file(held | {"extra": weights[first]}, exported / "b.safetensors")
    elif kind == "both":
        save_file(weights, exported / "model.safetensors")
    else:
        places[first] = "b.safetensors"
        index = json.dumps({"weight_map": places})
        (exported / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"holds other tensors than|has both"):
        import_huggingface(exported)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(exported: Path, file: str, kind: str) -> None:
    path = exported / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=r"not a regular file|Is a directory"):
        import_huggingface(exported)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\0"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_malformed_json_is_refused(exported: Path, file: str, text: str) -> None:
    if "index" in file:
        (exported / "model.safetensors").unlink()
    (exported / file).write_text(text)
    with pytest.raises(UserError, match=file):
        import_huggingface(exported)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "", 3, None])
def test_an_index_stays_in_its_folder(exported: Path, file: Any) -> None:
    (exported / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": file}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not name files of this folder"):
        import_huggingface(exported)


def test_pickles_are_refused_with_the_reason(exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles, which can run code.*safetensors"):
        import_huggingface(exported)


def test_missing_and_damaged_weights(exported: Path, tmp_path: Path) -> None:
    weights = exported / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        import_huggingface(exported)
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        import_huggingface(exported)
    weights.unlink()
    with pytest.raises(UserError, match="no weights"):
        import_huggingface(exported)
    with pytest.raises(UserError, match="not a folder"):
        import_huggingface(tmp_path / "meta-llama" / "Llama-3.2-1B")


def test_tied_weights_stored_twice(exported: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = exported / "model.safetensors"
    weights = load_file(path)
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, path)
    assert "head.weight" not in import_huggingface(exported)[1]
    save_file(weights | {"lm_head.weight": embedding + 1}, path)
    with pytest.raises(UserError, match="differs from the embedding"):
        import_huggingface(exported)


@pytest.mark.parametrize(("shape", "first"), [("qk-norm", 2), ("window, qk-norm", 0)])
def test_transformers_4_finds_the_window_by_layer(tmp_path: Path, shape: str, first: int) -> None:
    """transformers 5 reads `layer_types`; version 4.51 the first layer that has the window."""
    model = config_of(shape)
    export_huggingface(weights_of(model), model, tmp_path / "hf", seq_len=SEQ_LEN)
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    assert config["max_window_layers"] == first
    assert config["use_sliding_window"] == (shape == "window, qk-norm")
    del config["layer_types"]
    path.write_text(json.dumps(config))
    assert import_huggingface(tmp_path / "hf")[0] == model


def test_transformers_4_keys_and_5_keys_read_alike(exported: Path) -> None:
    path = exported / "config.json"
    old = json.loads(path.read_text())
    assert "rope_theta" in old and "torch_dtype" in old and "rope_parameters" not in old
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    scaling = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 8,
    }
    path.write_text(json.dumps(old | {"rope_theta": 7.5, "rope_scaling": scaling}))
    from_old, _ = import_huggingface(exported)
    path.write_text(json.dumps(new | {"rope_parameters": scaling | {"rope_theta": 7.5}}))
    from_new, _ = import_huggingface(exported)
    assert from_old == from_new
    rotary = from_old.architecture().layers[0].attention.rotary
    assert rotary is not None and rotary.scaling is not None
    assert rotary.theta == 7.5 and rotary.scaling.factor == 4.0


def test_sizes_that_nobody_can_count_are_refused() -> None:
    heads = {"num_heads": 2**30, "num_kv_heads": 2**30, "head_dim": 2**30}
    sizes = SMALL | heads | {"hidden_size": 2**30}
    with pytest.raises(UserError, match="no machine"):
        parameter_shapes(model_config(**sizes))
