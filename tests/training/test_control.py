"""What one process asks for is answered by all at the same step."""

from __future__ import annotations

import os
import signal

import pytest
from fleet import run_fleet
from watched import answers_of

from triax.training.stability.control import ControlLine, Requests, StopSignal


def test_all_processes_answer_one_step_later() -> None:
    found = run_fleet(3, answers_of, 1, 2)
    assert found[0] == found[1] == found[2]
    assert [answer.stop for answer in found[0]] == [False, False, False, True, False]


def test_a_single_process_answers_at_once() -> None:
    assert ControlLine(None).exchange(Requests(save=True)) == Requests(save=True)


def test_signals_are_told_at_once_and_noted() -> None:
    told: list[str] = []
    with StopSignal(told.append) as stop:
        stop.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
    assert told == ["SIGHUP: the run stops and saves after this step"]


def test_a_second_ctrl_c_quits() -> None:
    told: list[str] = []
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal(told.append) as stop:
            stop.listen()
            os.kill(os.getpid(), signal.SIGINT)
            assert "Ctrl-C again quits at once" in told[0]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_what_is_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            stop.listen()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_after_the_end_no_signal_ends_the_process() -> None:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with StopSignal() as stop:
        stop.listen()
        stop.end()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is None
    finally:
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, handler in former.items():
            signal.signal(number, handler)
