"""Arrays that are used again, and only when nothing refers to them."""

import threading

import numpy as np
import pytest

from edgekit.files.buffers import KEPT, LARGEST, SMALLEST, uninitialized


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_uses_is_used_again():
    first = uninitialized(SMALLEST + 1)
    place = address(first)
    del first
    assert address(uninitialized(SMALLEST + 1)) == place


@pytest.mark.parametrize("keep", [lambda a: a[5:9], lambda a: a.view(np.float32), memoryview, lambda a: a.data[3:]])
def test_memory_that_something_refers_to_is_not(keep):
    array = uninitialized(SMALLEST + 4)
    array[:] = 7
    kept = keep(array)
    places = {address(array)}
    del array
    for value in range(2 * KEPT):
        other = uninitialized(SMALLEST + 4)
        other[:] = value
        assert address(other) not in places
    assert bytes(kept)[:4] == bytes([7] * 4)


def test_threads_have_their_own():
    places = [address(uninitialized(SMALLEST + 8))]
    thread = threading.Thread(target=lambda: places.append(address(uninitialized(SMALLEST + 8))))
    thread.start()
    thread.join()
    assert places[0] != places[1]


@pytest.mark.parametrize("nbytes", [0, 1, SMALLEST - 1, SMALLEST, LARGEST, LARGEST + 1])
def test_sizes(nbytes):
    array = uninitialized(nbytes)
    assert (array.nbytes, array.dtype, array.flags.writeable) == (nbytes, np.uint8, True)
    assert nbytes == 0 or (array.base is not None) == (SMALLEST <= nbytes <= LARGEST)


def test_few_are_kept():
    arrays = [uninitialized(SMALLEST + 16) for _ in range(3 * KEPT)]
    assert len({address(array) for array in arrays}) == 3 * KEPT
    places = {address(array) for array in arrays}
    del arrays
    again = [uninitialized(SMALLEST + 16) for _ in range(KEPT)]
    assert {address(array) for array in again} <= places
