"""Neither side of a pipe waits for the other while the other waits for it."""

import os
import threading

from hypothesis import given
from hypothesis import strategies as st

from poolsave.executors.processes import pipes as _channels
from poolsave.executors.processes import shared_marks as _states


@given(st.lists(st.integers(0, 300_000), max_size=6), st.integers(1, 100_000))
def test_messages_arrive_whole_and_in_order_whatever_the_pieces(sizes, piece):
    reader, writer = os.pipe()
    try:
        outbox, inbox = _channels.Outbox(writer), _channels.Inbox(reader)
        sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
        for message in sent:
            outbox.post(message)
        received = []
        while outbox.pending or len(received) < len(sent):
            received += inbox.messages()
            outbox.flush()
        assert received == sent
        os.close(writer)
        writer = -1
        assert inbox.messages() == []
        assert inbox.ended
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def test_message_to_a_closed_pipe_is_dropped():
    reader, writer = os.pipe()
    outbox = _channels.Outbox(writer)
    os.close(reader)
    outbox.post(b"x" * 100_000)
    assert not outbox.pending
    os.close(writer)


def test_marks_are_seen_on_the_other_side_and_old_ones_never():
    block, fd = _states.SharedMarks.create(10)
    worker = _states.SharedMarks.attach(fd)
    worker.begin(1, 4)
    worker.put(2, 3)
    assert (block.task, block.of_task(4)) == (1, b"\0\0\3\0")
    worker.begin(2, 3)
    assert (block.task, block.of_task(3)) == (2, b"\0\0\0")
    block.halt()
    assert worker.halted
    block.close()
    worker.close()


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_times_stand_for_marks_until_the_next_task(size, done, next_size):
    done = min(done, size)
    block, fd = _states.SharedMarks.create(40)
    worker = _states.SharedMarks.attach(fd)
    for task in (1, 2):  # the second time over the first one's leftovers
        worker.begin(task, size)
        times = worker.stamps(size, begun=7, ended=9)
        ended = done // task
        for place in range(ended):
            times[place] = 1.5 * task
        assert block.of_task(size) == (bytes([9] * ended) + bytes([7]) + bytes(size))[:size]
    worker.begin(3, next_size)
    assert block.of_task(next_size) == bytes(next_size)
    times.release()
    block.close()


@given(st.lists(st.integers(0, 100_000), max_size=6))
def test_worker_reads_each_of_many_messages_whole(sizes):
    reader, writer = os.pipe()
    sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]

    def write():
        for message in sent:
            _channels.send(writer, message)
        os.close(writer)

    writing = threading.Thread(target=write)
    writing.start()
    tasks = _channels.Reader(reader)
    received = []
    while (message := tasks.receive()) is not None:
        received.append(message)
    writing.join()
    os.close(reader)
    assert received == sent
