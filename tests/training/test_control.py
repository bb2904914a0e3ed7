"""What one process asks for is answered by all at the same step."""

from __future__ import annotations

from fleet import run_fleet
from watched import answers_of

from triax.training.control import ControlLine, Requests


def test_all_processes_answer_one_step_later() -> None:
    found = run_fleet(3, answers_of, 1, 2)
    assert found[0] == found[1] == found[2]
    assert [answer.stop for answer in found[0]] == [False, False, False, True, False]


def test_a_single_process_answers_at_once() -> None:
    assert ControlLine(None).exchange(Requests(save=True)) == Requests(save=True)
