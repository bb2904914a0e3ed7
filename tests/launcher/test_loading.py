"""Config files, good and bad: what is loaded, and how mistakes are reported."""

from __future__ import annotations

import copy
import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.common.quantities import Duration, Unit
from triax.launcher.checks.sections import find_problems
from triax.launcher.config.loading import load_config
from triax.launcher.config.overrides import split_overrides
from triax.launcher.config.problems import ConfigError, Problem
from triax.launcher.config.run_config import RunConfig
from triax.launcher.config.toml_lines import locate_keys
from triax.models.families import model_config

GOOD: dict[str, Any] = {
    "run": {"name": "test"},
    "model": {"preset": "mini-10m"},
    "data": {"sources": [{"path": "shards/train", "weight": 2}], "seq_len": 64},
    "batch": {"global_batch_size": 8, "micro_batch_size": 4},
    "optimizer": {"betas": [0.9, 0.99], "clip_norm": 1.0},
    "checkpoint": {"every": "7 steps"},
    "faults": {"plan": [{"kind": "kill", "step": 3, "rank": 1}]},
}
PROPERTY = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, config: dict[str, Any] | str | bytes) -> Path:
    path = folder / "run.toml"
    if isinstance(config, dict):
        config = tomli_w.dumps(config)
    path.write_bytes(config if isinstance(config, bytes) else config.encode())
    return path


def problems_of(folder: Path, config: dict[str, Any] | str, *overrides: str) -> list[Problem]:
    with pytest.raises(ConfigError) as raised:
        load_config(write(folder, config), overrides)
    return raised.value.problems


def with_lines(text: str) -> str:
    """GOOD's required keys, then the text."""
    required = {name: GOOD[name] for name in ("run", "model", "data", "batch")}
    return tomli_w.dumps(required) + textwrap.dedent(text)


def test_a_config_without_end_is_not_read_to_it() -> None:
    with pytest.raises(UserError, match="larger than 16,777,216 bytes; a config is a TOML file"):
        load_config("/dev/zero")


def test_a_good_config_is_loaded(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert isinstance(config, RunConfig)
    assert config.data.sources[0].weight == 2.0
    assert config.optimizer.betas == (0.9, 0.99)
    assert config.checkpoint.every == Duration(7, Unit.STEPS)
    assert config.model.hidden_size == 384


@pytest.mark.parametrize(
    ("section", "path", "words"),
    [
        ("[optimizer]\nlr = '3e-4'", "optimizer.lr", 'expected a number, got "3e-4"'),
        ("[optimizer]\nlr = nan", "optimizer.lr", "expected a finite number"),
        ("[optimizer]\nlr = -inf", "optimizer.lr", "expected a finite number"),
        ("[optimizer]\nlr = 0", "optimizer.lr", "expected more than 0, got 0"),
        ("[optimizer]\nlr = true", "optimizer.lr", "expected a number, got true"),
        ("[optimizer]\nlr = 2020-01-01", "optimizer.lr", "no config value is a date"),
        ("[optimizer]\nbetas = [0.9]", "optimizer.betas.1", "too few values, got [0.9]"),
        ("[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas.1", "expected less than 1"),
        ("[optimizer]\nbetas = 0.9", "optimizer.betas", "expected a list, got 0.9"),
        ("[optimizer]\nbeta = [1, 2]", "optimizer.beta", "unknown key; did you mean betas?"),
        ("[optimizer]\nmicro_batch_size = 3", "optimizer.micro_batch_size", "mean batch.micro"),
        (
            "[optimizer]\nzzzzz = 3",
            "optimizer.zzzzz",
            "unknown key; valid are name, implementation",
        ),
        ("[optimiser]\nlr = 3", "optimiser", "unknown section; did you mean optimizer?"),
        ("[optimizer]\n'lr[' = 3", "optimizer.lr[", "unknown key; did you mean lr?"),
        ("[lr]\nx = 3", "lr", "did you mean optimizer.lr?"),
        ("[precision]\ncompute = 'bf61'", "precision.compute", "did you mean bf16?"),
        ("[parallel]\nzero_stage = 4", "parallel.zero_stage", "expected 0, 1, 2 or 3, got 4"),
        ("[parallel]\ncompile = 1", "parallel.compile", "expected true or false, got 1"),
        ("[checkpoint]\nkeep = 1.0", "checkpoint.keep", "expected a whole number, got 1.0"),
        ("[checkpoint]\nkeep = 99999999999999999999", "checkpoint.keep", "too large a number"),
        ('[checkpoint]\ndeadline = "100000000000000 h"', "checkpoint.deadline", "at most 10 years"),
        ('[checkpoint]\nretry = "1000000000 s"', "checkpoint.retry", "at most 10 years"),
        ('[checkpoint]\ndeadline = "0.5 s"', "checkpoint.deadline", "at least 1 s"),
        ('[parallel]\ntimeout = "0.001 s"', "parallel.timeout", "at least 1 s"),
        ('[stability]\nhang_after = "0.1 s"', "stability.hang_after", "at least 1 s"),
        ("[stability]\nwindow = 2147483648", "stability.window", "at most 65536"),
        ("[optimizer]\neps = 1e-46", "optimizer.eps", "at least 1.2e-38"),
        ("[optimizer]\nlr = 1e300", "optimizer.lr", "at most 3.4e+38"),
        ("[precision]\ninitial_loss_scale = 1e300", "precision.initial_loss_scale", "at most 3"),
        ("[[faults.plan]]\nseconds = 1e300\nstep = 1", "faults.plan.0.seconds", "at most 3.15"),
        ("[checkpoint]\nevery = 5", "checkpoint.every", "expected a duration such as"),
        ('[checkpoint]\ninit_from = ""', "checkpoint.init_from", "a text that isn't empty"),
        ("[checkpoint]\ninit_from = 5", "checkpoint.init_from", "expected text in quotes, got 5"),
        ("[budget]\ntokens = '20 bananas'", "budget.tokens", 'expected "chinchilla" or a count'),
        ("[schedule]\nwarmup = '1 h'", "schedule.warmup", "expected steps or tokens"),
        ("[[eval]]\nbatches = 3", "eval", "expected a table"),
    ],
)
def test_each_mistake_has_its_place_and_its_mending(
    tmp_path: Path, section: str, path: str, words: str
) -> None:
    text = with_lines(section + "\n")
    (problem,) = problems_of(tmp_path, text)
    assert problem.path == path
    assert words in problem.message
    lines = text.splitlines()
    depth = 0 if "section" in problem.message or path == "lr" or "." not in path else 1
    assert problem.line == lines.index(section.splitlines()[depth]) + 1


def test_a_family_has_its_own_keys(tmp_path: Path) -> None:
    def model(**fields: Any) -> list[str]:
        found = problems_of(tmp_path, {**GOOD, "model": fields})
        return [f"{problem.path}: {problem.message}" for problem in found]

    good = {"preset": "gpt2-124m", "num_positions": 64}
    loaded = load_config(write(tmp_path, {**GOOD, "model": good}), ["model.family=gpt2"]).model
    assert (loaded.family, loaded.model_dump()["num_positions"]) == ("gpt2", 64)
    [problem] = model(preset="gpt2-124m", rope_theta=1e4)
    assert problem.startswith('model.rope_theta: not a key of the family "gpt2", whose keys are ')
    assert "num_positions" in problem and "qk_norm" not in problem
    [problem] = model(preset="mini-10m", num_positions=64)
    assert '"llama"' in problem and "qk_norm" in problem
    [problem] = model(preset="mini-10m", family="gtp2")
    assert problem == 'model.family: no family is called "gtp2"; did you mean gpt2?'
    [problem] = model(preset="mini-10m", family="gpt2")
    assert problem == "model: preset 'mini-10m' is of the family 'llama'"
    [problem] = model(family="gpt2", num_layers=2, hidden_size=8)
    assert "required keys are missing: num_heads, vocab_size" in problem


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layers=1000000000000000000", "at most 10000"),
        ("model.ffn_hidden_size=1000000000000", "less than 2.14748e+09"),
        ("model.norm_eps=1e-46", "at least 1.2e-38"),
        ("model.logit_softcap=5e-324", "at least 1.2e-38"),
        ("model.init_std=1e300", "at most 3.4e+38"),
        ("data.seq_len=2147483648", "less than 2.14748e+09"),
        ("data.prefetch=9223372036854775807", "at most 1000"),
        (f"run.name={'é' * 128}", "has 256 bytes, and a folder's name 255 at most"),
    ],
)
def test_sizes_that_no_machine_computes_with_are_refused(
    tmp_path: Path, override: str, words: str
) -> None:
    (problem,) = problems_of(tmp_path, GOOD, override)
    assert problem.path == override.partition("=")[0] and words in problem.message


def test_all_problems_are_reported_at_once_in_the_file_s_order(tmp_path: Path) -> None:
    text = """\
    [batch]
    globl_batch_size = 4
    micro_batch_size = 1.5

    [data]
    sources = [
      { path = "a", weight = 0 },
      { pth = "b" },
    ]
    seq_len = "long"

    [run]
    seed = -1

    [model]
    preset = "mini-10"
    """
    problems = problems_of(tmp_path, textwrap.dedent(text), "eval.every=4")
    assert [(problem.line, problem.path) for problem in problems] == [
        (None, "eval.every"),
        (2, "batch.globl_batch_size"),
        (3, "batch.micro_batch_size"),
        (7, "data.sources.0.weight"),
        (8, "data.sources.1.pth"),
        (10, "data.seq_len"),
        (12, "run"),
        (13, "run.seed"),
        (16, "model.preset"),
    ]
    by_path = {problem.path: problem for problem in problems}
    assert by_path["eval.every"].origin == "command line"
    assert by_path["model.preset"].message.endswith("did you mean mini-10m?")
    assert by_path["run"].message == "a required key is missing: name"


def test_none_switches_off_what_can_be_switched_off(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, with_lines("[optimizer]\nclip_norm = 'none'\n")))
    assert config.optimizer.clip_norm is None
    (problem,) = problems_of(tmp_path, with_lines("[optimizer]\nlr = 'none'\n"))
    assert problem.message == 'expected a number, got "none"'


def test_a_misspelt_required_key_is_one_problem(tmp_path: Path) -> None:
    config = copy.deepcopy(GOOD)
    config["batch"] = {"globl_batch_size": 8}
    (problem,) = problems_of(tmp_path, config)
    assert problem.message == "unknown key; did you mean global_batch_size?"


def test_missing_keys_of_a_table_are_one_problem(tmp_path: Path) -> None:
    config = copy.deepcopy(GOOD)
    config["model"] = {"num_layers": 2}
    (problem,) = problems_of(tmp_path, config)
    assert problem.path == "model"
    assert "hidden_size, num_heads" in problem.message
    assert "or give a preset: mini-10m" in problem.message


def test_a_missing_section_names_its_keys(tmp_path: Path) -> None:
    config = {name: table for name, table in GOOD.items() if name != "batch"}
    (problem,) = problems_of(tmp_path, config)
    assert (problem.path, problem.line) == ("batch", None)
    assert problem.message == "a required key is missing: global_batch_size"


def test_the_report_fits_80_columns(tmp_path: Path) -> None:
    config = copy.deepcopy(GOOD)
    config["model"] = {"preset": "x" * 60, "qk_norm": "yes" * 100}
    config["optimizer"] = {"lr": -1, "zzz": 3}
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, config))
    report = str(raised.value).split("\n", 1)[1]
    assert max(map(len, report.splitlines())) <= 80


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[run\n", "at line 1"),
        (b"[run]\nname = \n", "at line 2"),
        (b"[run]\nname = 'a'\nname = 'b'\n", "line 3"),
        (b"\xff\xfe", "not UTF-8 text.* save it as UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 10_000, "a number of more than 4,300 digits.* shorten it"),
        (b"\x00", "not valid TOML"),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(write(tmp_path, content))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    path = write(tmp_path, GOOD)
    config = load_config(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path) == config


def test_the_smallest_vocabulary_that_can_be_trained(tmp_path: Path) -> None:
    config = copy.deepcopy(GOOD)
    config["data"]["prepare"] = {"inputs": ["x"], "output": "out", "vocab_size": 256}
    with pytest.raises(ConfigError, match=r"data\.prepare\.vocab_size.*at least 257"):
        load_config(write(tmp_path, config))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"no such file; did you mean run.toml"):
        load_config(tmp_path / "runn.toml")
    with pytest.raises(UserError, match="can't be read"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="can't be read"):
        load_config("a\0b")
    with pytest.raises(UserError, match="can't be read"):
        load_config("a" * 5000)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("batch.micro_batch_size=2", "batch.micro_batch_size", 2),
        ("run.name=007", "run.name", "007"),
        ("data.tokenizer=null", "data.tokenizer", None),
        ("precision.compute=bf16", "precision.compute", "bf16"),
        ("parallel.zero_stage=3", "parallel.zero_stage", 3),
        ("parallel.compile=true", "parallel.compile", True),
        ("budget.tokens=20B", "budget.tokens", 20 * 10**9),
        ("budget.tokens=chinchilla", "budget.tokens", "chinchilla"),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", (0.8, 0.9)),
        ("optimizer.clip_norm=null", "optimizer.clip_norm", None),
        ("optimizer.clip_norm=none", "optimizer.clip_norm", None),
        ("eval.every=none", "eval.every", None),
        ("data.tokenizer=none", "data.tokenizer", None),
        ("data.tokenizer=./none", "data.tokenizer", "./none"),
        ("parallel.activation_checkpointing=none", "parallel.activation_checkpointing", "none"),
        ("checkpoint.every=10 min", "checkpoint.every", Duration(600, Unit.SECONDS)),
        ("model.rope_scaling.factor=8", "model.rope_scaling.factor", 8.0),
        ('data.sources=[{"path": "b"}]', "data.sources.0.path", "b"),
        ('batch={"global_batch_size": 3}', "batch.global_batch_size", 3),
    ],
)
def test_overrides_are_taken_by_the_field_s_type(
    tmp_path: Path, override: str, path: str, value: object
) -> None:
    found: Any = load_config(write(tmp_path, GOOD), [override])
    for key in path.split("."):
        found = found[int(key)] if key.isdigit() else getattr(found, key)
    assert found == value


@pytest.mark.parametrize(
    ("override", "path", "words"),
    [
        ("batch.micro_batch_size=two", "batch.micro_batch_size", 'whole number, got "two"'),
        ("batch.micro_batch_size=NaN", "batch.micro_batch_size", 'whole number, got "NaN"'),
        ("batch.micro=2", "batch.micro", "unknown key; did you mean micro_batch_size?"),
        ("bach.micro=2", "bach", "unknown section; did you mean batch?"),
        ("batch.micro_batch_size", "batch.micro_batch_size", "--section.key=value"),
        ("batch.=3", "batch.", "--section.key=value"),
        ("run.name.first=x", "run.name.first", "no table; give the whole value as JSON"),
        ("data.sources.0.path=x", "data.sources.0.path", "no table; give the whole value"),
        ("run.name=\udcff", "run.name", "not UTF-8"),
        ("batch=3", "batch", "expected a table, got 3"),
    ],
)
def test_mistakes_in_overrides_name_the_command_line(
    tmp_path: Path, override: str, path: str, words: str
) -> None:
    (problem,) = problems_of(tmp_path, GOOD, override)
    assert (problem.path, problem.origin, problem.line) == (path, "command line", None)
    assert words in problem.message


def test_overrides_are_found_among_other_arguments() -> None:
    argv = ["--a.b", "-1", "run.toml", "--eval={}", "--nproc", "2", "--c.d=x=y", "--", "--e.f=1"]
    assert split_overrides(argv) == (
        ["run.toml", "--nproc", "2", "--e.f=1"],
        ("a.b=-1", "eval={}", "c.d=x=y"),
    )
    assert split_overrides(["--a.b"]) == ([], ("a.b",))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100_000),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["20B", "5 steps", "chinchilla", "mini-10m", "bf16", "1e999", "-1 steps", ""]),
    st.dates(),
    st.times(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        found for key, item in pairs for found in ((*prefix, key), *paths_of(item, (*prefix, key)))
    ]


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value if item is not None]
    return value


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """GOOD with every field of some sections given, and a few places spoilt."""
    config = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        section = draw(st.sampled_from(sorted(RunConfig.model_fields)))
        kind = RunConfig.model_fields[section].annotation
        assert kind is not None
        fields = sorted(kind.model_fields)
        action = draw(st.sampled_from(["replace", "set", "rename", "drop", "section"]))
        if action == "section":
            config[section] = draw(VALUES)
        elif action == "set" and isinstance(config.setdefault(section, {}), dict):
            config[section][draw(st.sampled_from(fields))] = draw(VALUES)
        elif places := paths_of(config):
            *parents, last = draw(st.sampled_from(places))
            holder: Any = config
            for key in parents:
                holder = holder[key]
            value = holder.pop(last)
            if action == "rename" and isinstance(holder, dict):
                holder[f"{last}{draw(st.text(max_size=2))}"] = value
            elif action == "replace" and isinstance(holder, dict):
                holder[last] = draw(VALUES)
    return without_none(config)  # type: ignore[no-any-return]


@PROPERTY
@given(config=mutated())
def test_no_mutation_of_a_config_gives_anything_but_a_config_or_a_report(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    path = write(tmp_path, config)
    try:
        loaded = load_config(path)
    except ConfigError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)
        assert "pydantic" not in str(error) and "Traceback" not in str(error)
    except UserError as error:
        assert "not valid TOML" in str(error)
    else:
        assert isinstance(loaded, RunConfig)


@PROPERTY
@given(content=st.binary(max_size=60) | st.text(alphabet="[]{}=.,\"'#\n a1", max_size=40))
def test_no_bytes_give_anything_but_a_report(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(UserError):
        load_config(write(tmp_path, content))


@PROPERTY
@given(
    path=st.sampled_from([".".join(map(str, path)) for path in paths_of(GOOD)])
    | st.text(alphabet="abr.un=", max_size=8),
    value=st.text(max_size=8) | SCALARS.map(lambda value: json.dumps(value, default=str)),
)
def test_no_override_gives_anything_but_a_config_or_a_report(
    tmp_path: Path, path: str, value: str
) -> None:
    try:
        load_config(write(tmp_path, GOOD), [f"{path}={value}"])
    except ConfigError as error:
        assert error.problems


DOCUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.integers() | st.text(max_size=6) | st.dates() | st.floats() | st.datetimes(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@PROPERTY
@given(document=DOCUMENTS, multiline=st.booleans())
def test_every_key_of_a_document_is_located(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines = locate_keys(text)
    assert set(lines) == set(paths_of(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_keys_are_located_in_all_that_toml_allows() -> None:
    text = '''\
# [not.a.table]
top = """
[no] key = 1
"""  # [no]
"quoted key" = 'x # y'
a.b . "c" = { d = [1, 2 ], e.f = 1979-05-27 07:32:00 } # tail
[[list]]
x = [
  # comment ]
  "]", {k = '[['},
]
[[list]]
[list.sub]
y = 1
'''
    assert set(locate_keys(text)) == set(paths_of(tomllib.loads(text)))
    found = {".".join(map(str, path)): line for path, line in locate_keys(text).items()}
    expected = {
        "top": 2, "quoted key": 5, "a.b.c.d.1": 6, "list": 7, "list.0.x": 8, "list.0.x.1.k": 10,
        "list.1": 12, "list.1.sub.y": 14,
    }  # fmt: skip
    assert {path: found[path] for path in expected} == expected
    assert locate_keys(text.replace("\n", "\r\n")) == locate_keys(text)


def test_unknown_keys_hide_nothing_and_nothing_hides_them(tmp_path: Path) -> None:
    text = """\
    [run]
    name = "x"
    [model]
    num_layers = 2
    hidden_size = 10
    num_heads = 3
    ffn_hidden_size = 64
    vocab_size = 304
    bananas = 3
    [data]
    sources = [{ path = "a", wieght = 1 }, { path = "a" }]
    seq_len = 32
    [batch]
    globl_batch_size = 8
    """
    expected = {
        "model.head_dim": "hidden_size 10 is not a multiple of num_heads 3",
        "model.bananas": "unknown key; valid are family, preset",
        "data": "names the same path twice",
        "data.sources.0.wieght": "unknown key; did you mean weight?",
        "batch.globl_batch_size": "unknown key; did you mean global_batch_size?",
    }
    found = {problem.path: problem.message for problem in problems_of(tmp_path, text)}
    assert found.keys() == expected.keys()
    assert all(words in found[path] for path, words in expected.items())


def test_heads_that_do_not_divide_hide_nothing(tmp_path: Path) -> None:
    model = {"num_layers": 0, "hidden_size": 10, "num_heads": 3, "ffn_hidden_size": "x"}
    found = {problem.path for problem in problems_of(tmp_path, GOOD | {"model": model})}
    assert found == {"model", "model.num_layers", "model.head_dim", "model.ffn_hidden_size"}


def test_a_bad_value_that_stands_alone_hides_no_check(tmp_path: Path) -> None:
    tables = {
        "data": {"sources": [{"path": "none"}], "seq_len": 8, "prefetch": -1},
        "checkpoint": {"init_from": "nowhere", "keep": 0},
    }
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD | tables), (), find_problems)
    found = {problem.path for problem in caught.value.problems}
    assert found >= {
        "data.prefetch", "data.sources.0.path", "checkpoint.keep", "checkpoint.init_from"
    }  # fmt: skip


def test_a_resolved_config_of_a_preset_s_former_name_loads(tmp_path: Path) -> None:
    former = model_config(preset="llama-124m").model_dump(mode="json", exclude_none=True)
    del former["family"]
    config = load_config(write(tmp_path, GOOD | {"model": former | {"preset": "gpt2-124m"}}))
    assert config.model == model_config(preset="llama-124m")


def test_an_unknown_preset_hides_nothing(tmp_path: Path) -> None:
    config = GOOD | {"model": {"preset": "mini", "num_layers": 0, "bananas": 1}}
    found = {problem.path for problem in problems_of(tmp_path, config)}
    assert found == {"model.preset", "model.num_layers", "model.bananas"}


@pytest.mark.parametrize("zero", [0, "0", "0 steps", "0 tokens"])
def test_a_warmup_may_be_none_at_all(tmp_path: Path, zero: object) -> None:
    config = load_config(write(tmp_path, GOOD), [f"schedule.warmup={zero}"])
    assert config.schedule.warmup == Duration(0, Unit.STEPS)
    again = type(config.schedule).model_validate_json(config.schedule.model_dump_json())
    assert again == config.schedule


def test_optional_texts_are_turned_off_by_none(tmp_path: Path) -> None:
    overrides = ["data.validation=none", "data.tokenizer=none", "checkpoint.init_from=none"]
    config = load_config(write(tmp_path, GOOD), overrides)
    assert (config.data.validation, config.data.tokenizer) == (None, None)
    assert config.checkpoint.init_from is None
    kept = load_config(write(tmp_path, GOOD), ["data.validation=./none"])
    assert kept.data.validation == "./none"
