"""Faults of other generators and harnesses, each looked for by what would show it here.

Others are looked for elsewhere: batches of unequal prompts that write other texts than one alone
(transformers #22707, #30378; unsloth #3699) and a sliding window's cache that is off by one
(transformers #37574, #39408, #47708; mlx-lm #390) in test_cache.py; the order of filters
(transformers #8686, #30639; CTranslate2 #2013) in test_sampling.py; texts that are cut from the
left to leave room for an answer, and rolling windows (lm-eval #339, #2262, #2554) in
test_lm_eval.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fleet import run_fleet
from teams import answered
from tokenizers import Tokenizer, processors

from triax.data.prepare.document_tokens import DocumentTokens, Token
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer
from triax.inference.generate import NewToken, generate_batch
from triax.inference.lm_eval_tokens import HarnessTokens
from triax.inference.load import find_model
from triax.inference.sampling import Sampling
from triax.inference.scoring import score
from triax.inference.texts import Text
from triax.models.families import model_config
from triax.models.layers.transformer import Transformer

VOCAB_SIZE = 260


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of bytes, with `<|endoftext|>`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text("a")
    train_tokenizer([str(folder / "text")], 257, folder)
    return folder


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        model_config(
            num_layers=1, hidden_size=16, num_heads=2, ffn_hidden_size=16, vocab_size=VOCAB_SIZE,
            init_std=1.0,
        )
    ).eval()  # fmt: skip


def rows(model: Transformer, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": 12, "context": 64, "seeds": range(len(prompts))}
    texts: list[list[int]] = [[] for _ in prompts]
    for step in generate_batch(model, prompts, **(settings | options)):
        for text, new in zip(texts, step, strict=True):
            text += [] if new is None else [new.token]
    return texts


@pytest.mark.parametrize("penalty", [0.3, 4.0])
def test_what_fills_a_row_up_is_not_penalised(model: Transformer, penalty: float) -> None:
    """text-generation-inference #1765: padding counted as tokens that stand in the text."""
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    prompts = [[7], list(range(30, 60)), [9, 9]]
    together = rows(model, prompts, sampling=sampling)
    assert together == [rows(model, [prompt], sampling=sampling)[0] for prompt in prompts]


def test_a_penalty_counts_the_prompt_and_what_was_written(model: Transformer) -> None:
    """transformers #36642: whichever of both it counts, people must know."""
    sampling = Sampling(temperature=0, repetition_penalty=1e6)
    [text] = rows(model, [[3, 4, 5]], sampling=sampling)
    best = model.logits(torch.tensor([[3, 4, 5, *text]]))[0].argmax(-1).tolist()
    assert len({3, 4, 5, *text}) == 3 + len(text), "nothing twice, though"
    assert any(token in (3, 4, 5, *text) for token in best[2:]), "the model would like to"


@pytest.mark.parametrize(
    "sampling",
    [Sampling(top_p=1e-9), Sampling(min_p=1.0), Sampling(top_p=1e-9, min_p=1.0, top_k=1)],
)
def test_filters_leave_one_token_at_least(model: Transformer, sampling: Sampling) -> None:
    """oobabooga's textgen #4449: with nothing left the softmax is NaN, or the first id is drawn."""
    assert rows(model, [[3, 4]], sampling=sampling) == rows(
        model, [[3, 4]], sampling=Sampling(temperature=0)
    )


@pytest.mark.parametrize("ends", [[11, 250], 11, None])
def test_a_list_of_ends_ends_texts(tmp_path: Path, tokenizer: Path, ends: Any) -> None:
    """As `transformers` takes `eos_token_id`, one or several; Llama 3's folders have three."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=1.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(2)
    theirs: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    load_tokenizer(tokenizer).save(str(tmp_path / "tokenizer.json"))
    greedy = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
    whole = theirs.generate(torch.tensor([[5]]), **greedy)[0, 1:].tolist()
    if ends is not None:
        late = whole[6]
        ends = [250, late] if isinstance(ends, list) else late
        written = {"eos_token_id": ends}
        (tmp_path / "generation_config.json").write_text(json.dumps(written))
    found = find_model(str(tmp_path))
    expected = theirs.generate(torch.tensor([[5]]), eos_token_id=ends, **greedy)[0, 1:].tolist()
    stops = found.stop_tokens()
    if ends is not None:
        assert expected.pop() == late, "theirs keep the end"
    [text] = rows(
        found.load(), [[5]], max_new_tokens=40, sampling=Sampling(temperature=0), stop_tokens=stops
    )
    assert text == expected


def taken(tokenizer: Tokenizer, ids: Sequence[int], **options: Any) -> Iterator[Text]:
    """A text after each of its new tokens, and at its end."""
    text = Text(tokenizer, list(tokenizer.encode("ab").ids), options.get("stops", ()))
    for token in ids:
        text.take(NewToken(token, 0.0))
        yield text
    text.take(None)
    text.finish(100)
    yield text


@pytest.mark.parametrize("written", ["世界 ok 🎈!", "é", "x世"])
def test_characters_of_several_tokens_are_shown_once_and_whole(
    tokenizer: Path, written: str
) -> None:
    """sglang #31598 showed some twice, dynamo #12630 and mlx-vlm #1778 replaced them."""
    loaded, shown = load_tokenizer(tokenizer), ""
    ids = loaded.encode(written).ids
    assert len(ids) == len(written.encode())
    for text in taken(loaded, ids):
        assert text.added.startswith(shown) and "\N{REPLACEMENT CHARACTER}" not in text.added
        shown = text.added
    assert shown == written


def test_half_a_character_at_the_end_is_not_lost(tokenizer: Path) -> None:
    """lattice #751: what was held back went when the model ended its text."""
    loaded = load_tokenizer(tokenizer)
    *_, text = taken(loaded, loaded.encode("x世").ids[:-1])
    assert text.added == "x\N{REPLACEMENT CHARACTER}" and text.finish_reason == "stop"


def test_stop_strings_over_tokens_and_within_one(tokenizer: Path) -> None:
    """fauxpilot #85, TensorRT-LLM #90: a stop string isn't its own tokens; the first one counts."""
    loaded, shown = load_tokenizer(tokenizer), ""
    for text in taken(loaded, loaded.encode("one.\n\nQ: two").ids, stops=("Q:", "\n\n")):
        assert text.added.startswith(shown) and "\n" not in text.added
        shown = text.added
    assert shown == "one." and text.finish_reason == "stop"
    *_, text = taken(loaded, loaded.encode("end\n").ids, stops=("\n\n",))
    assert text.added == "end\n", "what only looked like one comes at the end"


def begins_texts(tokenizer: Path) -> Tokenizer:
    """The tokenizer, which puts its special token before each text."""
    loaded = load_tokenizer(tokenizer)
    end = "<|endoftext|>"
    loaded.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, loaded.token_to_id(end))]
    )
    return loaded


def test_a_text_is_begun_once(tokenizer: Path) -> None:
    """lm-eval #3333, #3347: two beginnings where the tokenizer or the text has one already."""
    loaded = begins_texts(tokenizer)
    begin_id = loaded.token_to_id("<|endoftext|>")
    assert begin_id is not None
    begin = Token("<|endoftext|>", begin_id)
    documents = DocumentTokens(begin, begin)
    tokens = HarnessTokens(loaded, str(tokenizer), documents)
    own = loaded.encode("ab", add_special_tokens=False).ids
    assert tokens.tok_encode("ab") == tokens.tok_encode("<|endoftext|>ab") == [begin.id, *own]
    assert tokens.tok_encode("ab", add_special_tokens=False) == own
    assert tokens.prefix_token_id == begin.id
    assert documents.begun(own) == documents.begun([begin.id, *own]) == [begin.id, *own]
    assert documents.begun([]) == [begin.id]


@torch.no_grad()
def test_a_continuation_may_fill_the_context(model: Transformer) -> None:
    """lm-eval #3503, #942: the last token is only asked for, so one more than the context fits."""
    chance = torch.Generator().manual_seed(1)
    for length in (7, 8, 9, 14):
        context = [3] * (length - 6)
        continuation = torch.randint(VOCAB_SIZE, (6,), generator=chance).tolist()
        [found] = score(model, [(context, continuation)], max_length=8, batch_size=1)
        seen = [*context, *continuation][-9:]
        log_probs_TV = model.logits(torch.tensor([seen[:-1]]))[0].log_softmax(-1)
        places = range(len(seen) - 7, len(seen) - 1)
        expected = sum(
            float(log_probs_TV[place, token])
            for place, token in zip(places, continuation, strict=True)
        )
        assert found.log_prob == pytest.approx(expected, abs=1e-4)


def test_fewer_questions_than_processes_are_answered() -> None:
    """lm-eval #951: processes without a question of their own left the others waiting."""
    for count in (0, 1, 3):
        expected = [number * number for number in range(count)]
        assert run_fleet(2, answered, count) == [expected, expected]
