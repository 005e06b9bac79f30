"""Threads that start, or say that memory does not allow it."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor

import pytest

from edgekit.files.threads import Thread
from edgekit.files.workers import Workers

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")


@pytest.fixture(params=[Workers, ThreadPoolExecutor], ids=["ours", "Python's"])
def pools(request):
    """Both, which differ only in what happens where memory runs out."""
    return request.param


def test_results_come_in_order(pools):
    with pools(3) as pool:
        assert isinstance(pool, Executor)
        assert list(pool.map(lambda n: n * n, range(50))) == [n * n for n in range(50)]


def test_no_more_threads_than_asked_for(pools):
    seen, barrier = set(), threading.Barrier(3)

    def work(number):
        if number < 3:
            barrier.wait(30)  # all three are at work at once
        seen.add(threading.current_thread().name)

    with pools(3) as pool:
        list(pool.map(work, range(30)))
    assert len(seen) == 3


def test_an_idle_thread_is_used_again(pools):
    with pools(8) as pool:
        names = set()
        for _ in range(5):
            names.add(pool.submit(lambda: threading.current_thread().name).result())
            time.sleep(0.05)  # for the thread to be idle
        assert len(names) < 5


def test_an_error_is_raised_where_the_result_is_asked_for(pools):
    with pools(1) as pool:
        with pytest.raises(KeyError, match="missing"):
            pool.submit(dict[str, int]().__getitem__, "missing").result()
        assert pool.submit(abs, -1).result() == 1  # the thread goes on


def test_shutdown_waits_and_takes_no_more(pools):
    pool, done = pools(1), []
    for number in range(3):
        pool.submit(lambda n=number: (time.sleep(0.01), done.append(n)))
    pool.shutdown()
    assert done == [0, 1, 2]
    with pytest.raises(RuntimeError):
        pool.submit(abs, -1)
    pool.shutdown()


def test_what_can_wait_is_done_after_what_cannot():
    begun, go, done = threading.Event(), threading.Event(), []
    with Workers(1) as pool:
        pool.submit(lambda: (begun.set(), go.wait(30)))
        assert begun.wait(30)
        waiting = [pool.later.submit(done.append, number) for number in range(2)]
        list(map(pool.submit, [done.append] * 2, [2, 3]))
        go.set()
    assert done == [2, 3, 0, 1]
    assert all(future.result() is None for future in waiting)


def test_threads_take_both_kinds_of_work_without_losing_any():
    with Workers(4) as pool:
        futures = [(pool.later if number % 3 else pool).submit(abs, -number) for number in range(3000)]
        assert [future.result() for future in futures] == list(range(3000))


def test_what_can_wait_is_cancelled_too_and_a_second_shutdown_ends():
    begun, go = threading.Event(), threading.Event()
    pool = Workers(1)
    first = pool.submit(lambda: (begun.set(), go.wait(30)))
    waiting = [each.submit(abs, -1) for each in (pool.later, pool)]
    assert begun.wait(30)
    for _ in range(2):
        pool.shutdown(wait=False, cancel_futures=True)
    go.set()
    pool.shutdown()
    assert first.done()
    assert all(future.cancelled() for future in waiting)


def test_work_can_be_cancelled_before_it_begins(pools):
    begun, go = threading.Event(), threading.Event()
    pool = pools(1)
    first = pool.submit(lambda: (begun.set(), go.wait(30)))
    second, third = pool.submit(abs, -2), pool.submit(abs, -3)
    assert begun.wait(30)
    assert second.cancel()
    pool.shutdown(wait=False, cancel_futures=True)
    go.set()
    pool.shutdown()
    assert first.result()[1]
    for future in (second, third):
        with pytest.raises(CancelledError):
            future.result()


def test_what_is_cancelled_may_just_be_taken(pools):
    """The last job is taken between a look at the queue and `get` once in some hundred times, which then waited forever."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            pool = pools(1)
            for _ in range(3):
                pool.submit(int)
            closing = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
            closing.start()
            closing.join(60)
            assert not closing.is_alive()
    finally:
        sys.setswitchinterval(interval)


def test_no_result_and_no_error_is_kept(pools):
    class Large:
        pass

    def failing(large):
        raise ValueError(large)

    gc.disable()  # references alone decide
    try:
        with pools(1) as pool:
            large = Large()
            kept = weakref.ref(large)
            with pytest.raises(ValueError, match="Large"):
                pool.submit(failing, large).result()
            assert pool.submit(lambda x: x, large).result() is large
            pool.submit(abs, -1).result()
            del large
            assert kept() is None
    finally:
        gc.enable()


def test_a_thread_runs_once_and_can_be_joined():
    seen = []
    thread = Thread(target=seen.append, args=(1,), name="one")
    thread.start()
    thread.join(30)
    assert (seen, thread.is_alive(), thread.daemon, thread.name) == ([1], False, True, "one")
    with pytest.raises(RuntimeError, match="once"):
        thread.start()


SHORT = """
import os, resource, signal, sys
from edgekit.errors import MemoryShortageError
from edgekit.files import threads, workers

threads.PATIENCE = 0.5
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the interpreter prints what ends a thread
stack = 1 << 20
threads.threading.stack_size(stack)
codes = []
for more in range(stack - 65536, stack + 3 * 65536, 4096):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            pages = int(open("/proc/self/statm").read().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)
            START
            code = 0
        except MemoryShortageError as error:
            code = error.exit_code if "starting the thread" in str(error) and " 1,048,576 bytes" in str(error) else 2
        finally:
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""
THREAD = 'threads.Thread(target=print, name="a thread").start()'
POOL = "assert list(workers.Workers(4).map(abs, range(9))) == list(range(9))"


@linux
@pytest.mark.parametrize("start", [THREAD, POOL], ids=["thread", "pool"])
def test_a_thread_that_memory_does_not_allow_is_an_error_and_no_hang(start):
    """Some of these limits allow a stack but not the first frame; Python's own `start` waits for ever with those."""
    done = subprocess.run([sys.executable, "-c", SHORT.replace("START", start)], capture_output=True, check=False)
    assert done.returncode == 0
    codes = eval(done.stdout)
    assert set(codes) == {0, 5}
