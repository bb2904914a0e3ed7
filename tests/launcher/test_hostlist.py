"""SLURM's short notations, expanded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.launcher.cluster.hostlist import expand_counts, expand_nodes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("gpu[08-10],login", ["gpu08", "gpu09", "gpu10", "login"]),
        ("r[1-2]n[01,03]-ib", ["r1n01-ib", "r1n03-ib", "r2n01-ib", "r2n03-ib"]),
        ("a.b-c[0]", ["a.b-c0"]),
    ],
)
def test_node_lists_are_expanded(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize(
    "text", ["", "node[", "node]", "node[1-]", "node[3-1]", "a,,b", "node[a]", "n[1-999999999]"]
)
def test_what_is_no_node_list_is_named(text: str) -> None:
    with pytest.raises(UserError, match="is no list of nodes"):
        expand_nodes(text)


def test_task_counts_are_expanded() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    for text in ("", "2(3)", "x", "2(x9999999)", "2,"):
        with pytest.raises(UserError, match="tasks per node"):
            expand_counts(text)


@settings(deadline=None)
@given(st.text("n[]-,(x)019", max_size=12))
def test_no_text_gives_anything_but_a_list_or_a_report(text: str) -> None:
    for expand in (expand_nodes, expand_counts):
        try:
            assert expand(text)
        except UserError:
            continue
