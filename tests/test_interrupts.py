"""A signal ends work as a signal, whoever it reaches first."""

import signal

import pytest

from dreamgym.interrupts import Interrupted, stops_on_signals, unmasked


def stop_within(number: int) -> None:
    """What Python before 3.12 makes of a signal that arrives while a class is built."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt as error:
        raise RuntimeError("Error calling __set_name__ on 'Field' instance") from error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_became_an_error_on_its_way_is_a_stop_again(number):
    with pytest.raises(Interrupted) as caught, stops_on_signals():
        stop_within(number)
    assert caught.value.number == number
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_it_says_is_kept():
    with pytest.raises(Interrupted, match="go on"), unmasked():
        raise ValueError from Interrupted("go on", signal.SIGTERM)


def test_other_errors_are_themselves():
    error = RuntimeError("of its own")
    with pytest.raises(RuntimeError) as caught, unmasked():
        raise error from ValueError()
    assert caught.value is error
