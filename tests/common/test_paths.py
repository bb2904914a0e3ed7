"""`~` and `$NAME` in a path."""

from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.common.paths import expand, short_path


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("runs", "runs"),
        ("/data/x", "/data/x"),
        ("~", "/home/me"),
        ("~/runs", "/home/me/runs"),
        ("$SCRATCH/runs", "/scratch/me/runs"),
        ("${SCRATCH}/${USER}_runs", "/scratch/me/me_runs"),
        ("cost$5/a$", "cost$5/a$"),
        ("./~/x", "~/x"),
        ("a/~", "a/~"),
        ("${1}$()", "${1}$()"),
    ],
)
def test_home_and_variables_are_put_in(
    written: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("USER", "me")
    assert expand(written) == Path(expected)


def test_a_variable_s_value_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "$B")
    monkeypatch.setenv("B", "~")
    assert expand("x/$A") == Path("x/$B")
    assert expand("$B/x") == Path("~/x")


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_or_empty_variable_is_refused(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCRATCH", raising=False)
    if value is not None:
        monkeypatch.setenv("SCRATCH", value)
    with pytest.raises(UserError, match=r"\$SCRATCH/runs: the variable SCRATCH isn't set"):
        expand("$SCRATCH/runs")


def test_an_unknown_user_is_refused() -> None:
    with pytest.raises(UserError, match=r"no home of ~no-such-user on this machine"):
        expand("~no-such-user/x")


def test_a_path_is_shown_from_the_working_folder_or_by_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "a" / "run.toml"), 40) == "a/run.toml"
    assert short_path("preset llama3-8b", 40) == "preset llama3-8b"
    shown = short_path("/" + 20 * "folder/" + "run.toml", 40)
    assert len(shown) == 40
    assert shown.startswith("\N{HORIZONTAL ELLIPSIS}")
    assert shown.endswith("folder/run.toml")
