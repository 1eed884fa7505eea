# SPDX-License-Identifier: Apache-2.0
"""Signals that are held back take effect after the block: none is lost, none is changed."""

import faulthandler
import signal
import threading

import pytest

from worldvla_ros.held_signals import HELD_SIGNALS, signals_held


@pytest.fixture(params=HELD_SIGNALS)
def number(request):
    before = signal.getsignal(request.param)
    signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_takes_effect_once_after_the_block(number):
    done = []
    with pytest.raises(KeyboardInterrupt), signals_held():
        for _ in range(2):  # as `timeout` does
            signal.raise_signal(number)
        done.append('all')
    assert done == ['all']
    assert signal.getsignal(number) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_a_block_that_fails_drops_no_signal(number):
    with pytest.raises(KeyboardInterrupt) as raised, signals_held():
        signal.raise_signal(number)
        raise KeyError('bad asset')
    assert isinstance(raised.value.__context__, KeyError)
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_signal_within_two_blocks_waits_for_the_outer_one(number):
    done = []
    with pytest.raises(KeyboardInterrupt), signals_held():
        with signals_held():
            signal.raise_signal(number)
        done.append('outer')
    assert done == ['outer']


@pytest.mark.parametrize('fate', [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_ignored_or_kills_stays_so(number, fate):
    signal.signal(number, fate)
    with signals_held():
        assert signal.getsignal(number) is fate
    assert signal.getsignal(number) is fate


def test_what_handles_a_signal_below_python_does_so_again(number, tmp_path):
    """As rclpy's handler, of which Python knows nothing."""
    signal.signal(number, lambda *_: None)
    dump = tmp_path / 'dump'
    with dump.open('w') as file:
        faulthandler.register(number, file, chain=True)
        try:
            with signals_held():
                signal.raise_signal(number)
                assert not dump.read_text()
            assert 'most recent call' in dump.read_text()
        finally:
            faulthandler.unregister(number)


def test_another_thread_holds_nothing(number):
    def hold():
        with signals_held():
            seen.append(signal.getsignal(number))
    seen = []
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
