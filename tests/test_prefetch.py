"""What comes next is read on another thread, in order."""

import threading

import pytest

from cellseg.prefetch import prefetch


def test_everything_is_read_once_and_in_order():
    calls = []

    def read(item):
        calls.append(item)
        return -item

    assert [(item, result()) for item, result in prefetch(read, iter(range(5)))] == [(n, -n) for n in range(5)]
    assert calls == [0, 1, 2, 3, 4]
    assert list(prefetch(read, [])) == []


def test_the_next_is_read_while_the_caller_is_busy():
    reached = [threading.Event() for _ in range(3)]

    def read(item):
        reached[item].set()
        return threading.current_thread()

    for item, result in prefetch(read, range(3)):
        assert result() is not threading.main_thread()
        if item < 2:
            assert reached[item + 1].wait(10)  # without its being asked for


def test_a_single_item_needs_no_thread():
    ((_, result),) = prefetch(lambda item: threading.current_thread(), [0])
    assert result() is threading.main_thread()


def test_what_reading_raises_is_raised_when_its_turn_comes_and_the_rest_goes_on():
    found = []
    for item, result in prefetch(lambda item: 1 // item, [1, 0, 2]):
        if item == 0:
            with pytest.raises(ZeroDivisionError):
                result()
        else:
            found.append(result())
    assert found == [1, 0]
