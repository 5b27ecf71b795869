"""Sizes of chunks, and that chunking covers each object exactly once."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave._engine.chunking import (
    BATCHED_LARGEST,
    BATCHED_TARGET,
    GROWTH,
    LARGEST,
    SHORTEST,
    TARGET,
    AdaptiveSize,
    FlowControl,
    max_lead,
    next_size,
)
from poolsave._engine.sources import IterableSource, QueueSource
from poolsave._pickling.values import pickle_chunk
from poolsave._runs.preparation import source_of

counts = st.integers(1, 100_000)
seconds = st.floats(1e-7, 100, allow_nan=False)
histories = st.lists(st.tuples(counts, seconds, st.booleans()), max_size=20)


@given(histories, st.sampled_from([LARGEST, 500]))
def test_sizes_grow_step_by_step_and_stay_within_bounds(history, largest):
    pace = AdaptiveSize()
    for count, spent, timed_out in history:
        grown = pace.after(count, spent, timed_out=timed_out, largest=largest)
        assert 1 <= grown.size <= min(largest, GROWTH * max(pace.size, count))
        pace = grown


@given(st.floats(1e-6, 10))
def test_a_steady_pace_ends_at_the_target(per_object):
    pace = AdaptiveSize()
    for _ in range(40):
        pace = pace.after(pace.size, pace.size * per_object)
    wanted = max(1, min(LARGEST, round(TARGET / per_object)))
    assert abs(pace.size - wanted) <= max(1, 0.01 * wanted)


@given(histories, st.integers(2, 10_000), st.floats(1e-6, 1e-3))
def test_server_timeout_halves_the_size_which_grows_back_slowly(history, count, per_object):
    pace = AdaptiveSize()
    for size, spent, timed_out in history:
        pace = pace.after(size, spent, timed_out=timed_out)
    pace = pace.after(count, count * per_object, timed_out=True)
    assert pace.size <= count // 2
    for _ in range(200):
        before = pace.size
        pace = pace.after(pace.size, pace.size * per_object)
        assert pace.size <= max(before + before // 8 + 1, pace.limit)
    assert pace.limit == LARGEST


@given(histories, st.integers(2, 8), st.integers(0, 10_000))
def test_the_tail_is_cut_but_not_into_less_than_is_worth_sending(history, workers, remaining):
    pace = AdaptiveSize()
    for size, spent, timed_out in history:
        pace = pace.after(size, spent, timed_out=timed_out)
    size = next_size(pace.size, remaining=remaining, workers=workers, room=LARGEST, min_size=pace.min_size)
    share = -(-remaining // (2 * workers))
    assert size <= max(1, share) or (size - 0.5) * pace.seconds <= SHORTEST * pace.objects * 1.001


@pytest.mark.parametrize(
    ("remaining", "least", "workers", "size"),
    [(10_000, 1, 2, 500), (100, 1, 2, 25), (100, 40, 2, 40), (None, 1, 2, 500), (100, 1, 1, 500)],
)
def test_the_tail_is_shared_among_the_workers(remaining, least, workers, size):
    assert next_size(500, remaining=remaining, workers=workers, room=1000, min_size=least) == size


def test_fixed_sizes_stay_whatever_happens():
    pacing = FlowControl(7, None)
    pacing.learn(7, 100.0, timed_out=True, inline=False)
    assert pacing.next_size(in_flight=0, remaining=3, workers=2) == 7


@given(st.integers(1, 50) | st.just("auto"), st.none() | st.integers(1, 100), st.integers(0, 500), st.integers(1, 9))
def test_no_chunk_is_larger_than_the_window_has_room(chunksize, window, in_flight, workers):
    pacing = FlowControl(chunksize, window)
    size = pacing.next_size(in_flight=in_flight, remaining=None, workers=workers)
    if window is not None:
        assert in_flight + size <= max(window, in_flight)
    assert size <= pacing.longest


@given(histories, st.integers(1, 500), st.integers(0, 2000), st.integers(1, 9))
def test_max_lead_is_never_exceeded_and_always_reachable(history, capacity, in_flight, workers):
    pacing = FlowControl("auto", None)
    for size, spent, timed_out in history:
        pacing.learn(size, spent, timed_out=timed_out, inline=False)
    bound = max_lead(capacity, workers=workers)
    assert bound >= workers
    size = pacing.next_size(in_flight=in_flight, remaining=None, workers=workers, max_lead=bound)
    assert not size or in_flight + size <= bound
    assert pacing.next_size(in_flight=0, remaining=None, workers=workers, max_lead=bound) >= 1
    assert pacing.capacity(workers, bound) <= bound


@pytest.mark.parametrize(("chunksize", "window", "size"), [(500, None, 500), ("auto", 40, 1), (30, 40, 20)])
def test_chosen_size_is_not_bounded_by_the_next_stage(chunksize, window, size):
    pacing = FlowControl(chunksize, window)
    assert pacing.next_size(in_flight=10, remaining=None, workers=2, max_lead=8) == size


@pytest.mark.parametrize(("seconds", "depth"), [(0.0001, 4), (0.01, 2), (0.05, 1)])
def test_quick_chunks_are_prefetched(seconds, depth):
    pacing = FlowControl("auto", None)
    pacing.learn(1, seconds, timed_out=False, inline=False)
    assert pacing.prefetch == depth
    pacing.learn(1, seconds, timed_out=False, inline=True)
    assert pacing.prefetch == 1


@pytest.mark.parametrize(("seconds", "depth"), [(0.0, 16), (0.0005, 16), (0.001, 10), (0.004, 2), (0.006, 1), (5, 1)])
def test_chunks_of_a_worker_take_as_long_as_the_latency(seconds, depth):
    pacing = FlowControl(3, None)
    pacing.learn(3, seconds, timed_out=False, inline=False, latency=0.01)
    assert pacing.prefetch == depth
    assert pacing.capacity(5) == 3 * 5 * max(4, depth)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e-3, 5)), min_size=1))
def test_chunks_of_a_worker_take_twenty_milliseconds_at_most(chunks):
    """However long the latency is: they are lost with their worker."""
    pacing = FlowControl(3, None)
    for seconds, latency in chunks:
        pacing.learn(3, seconds, timed_out=False, inline=False, latency=latency)
        assert pacing.prefetch == 1 or pacing.prefetch * seconds <= 0.02


def test_one_quick_chunk_among_long_ones_changes_nothing():
    pacing = FlowControl(3, None)
    for seconds in (0.5, 0.0001):
        pacing.learn(3, seconds, timed_out=False, inline=False, latency=0.02)
    assert pacing.prefetch == 1


@given(st.floats(1e-4, 10), st.floats(0.1, 5), st.floats(0.003, 0.1))
def test_an_executor_has_its_own_target_and_shortest_chunk(per_object, target, latency):
    pacing = FlowControl("auto", None, target=target)
    for _ in range(40):
        size = pacing.next_size(in_flight=0, remaining=None, workers=1)
        pacing.learn(size, size * per_object, timed_out=False, inline=False, latency=latency)
    wanted = max(1, min(LARGEST, round(target / per_object)))
    assert abs(pacing.next_size(in_flight=0, remaining=None, workers=1) - wanted) <= max(1, 0.01 * wanted)
    last = pacing.next_size(in_flight=0, remaining=1, workers=2)
    assert abs(last - max(1, min(wanted, round(latency / per_object)))) <= max(1, 0.01 * last)


@pytest.mark.parametrize(("rows_each", "wanted"), [(1, 500), (3, 500), (4, 400), (20, 80), (2000, 1), (0, 500)])
def test_the_rows_of_a_chunk_can_wait_for_its_end(rows_each, wanted):
    pacing = FlowControl("auto", None, target=BATCHED_TARGET, largest=BATCHED_LARGEST)
    for number in range(40):
        size = pacing.next_size(in_flight=0, remaining=None, workers=1)
        rows = 0 if number == 30 else size * rows_each  # as if it had run in the ordinary way
        pacing.learn(size, size * 1e-5, timed_out=False, inline=False, rows=rows)
    assert size == wanted


@pytest.mark.parametrize(("target", "longest"), [(TARGET, 0.6), (BATCHED_TARGET, 0.6), (1.0, 2.0)])
def test_a_slow_commit_of_each_object_bounds_a_chunk(target, longest):
    pacing = FlowControl("auto", None, target=target)
    for _ in range(40):
        size = pacing.next_size(in_flight=0, remaining=None, workers=1)
        pacing.learn(size, size * 0.0066, timed_out=False, inline=False, committing=size * 0.006)
    assert size * 0.0066 <= longest + 0.0066


@pytest.mark.parametrize(("commit", "per_commit", "least"), [(0.09, 0.0, 150), (0.0, 0.01, 40)])
def test_a_slow_commit_makes_no_small_chunks(commit, per_commit, least):
    """Objects take 0.4 ms, and their COMMIT as long however many there are, or so long for each."""
    pacing = FlowControl("auto", None)
    for _ in range(30):
        size = pacing.next_size(in_flight=0, remaining=None, workers=1)
        committing = commit + size * per_commit
        pacing.learn(size, size * 0.0004 + committing, timed_out=False, inline=False, committing=committing)
    assert least <= size <= 8 * TARGET / (0.0004 + per_commit) + 1


def test_a_slow_first_object_is_soon_outweighed():
    """It connects and imports, and what is sent once per chunk takes as long as many objects."""
    pace = AdaptiveSize().after(1, 0.05)
    for _ in range(5):
        pace = pace.after(pace.size, 0.004 + pace.size * 0.0004)
    assert pace.size > TARGET / 0.0004 / 2


def test_objects_of_no_measurable_time_let_the_size_grow():
    assert AdaptiveSize().after(5, 0.0).size == 5 * GROWTH


@given(
    wanted=counts, remaining=st.none() | st.integers(0, 10_000), workers=st.integers(1, 64), room=st.integers(1, 10_000)
)
def test_size_is_at_least_one_and_leaves_work_for_all_workers(wanted, remaining, workers, room):
    size = next_size(wanted, remaining=remaining, workers=workers, room=room)
    assert 1 <= size <= max(1, min(wanted, room))
    if remaining and workers > 1:
        assert size <= -(-remaining // (2 * workers))


@given(
    objects=st.lists(st.integers(), max_size=60),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    idles=st.lists(st.booleans(), min_size=1, max_size=5),
    kind=st.sampled_from([list, tuple, iter, lambda objects: (item for item in objects)]),
)
def test_a_source_hands_out_each_object_once_and_in_order(objects, sizes, idles, kind):
    source = source_of(kind(objects), None)
    handed = []
    for step in range(10_000):
        if source.exhausted:
            break
        # Some worker is idle sooner or later.
        chunk = source.gather(sizes[step % len(sizes)], idle=[*idles, True][step % (len(idles) + 1)])
        if chunk is not None:
            assert 1 <= len(chunk) <= max(sizes)
            handed += chunk
    assert handed == objects


def test_a_range_is_sent_without_its_numbers_being_written_out():
    source = source_of(range(0, 10**9, 3), None)
    source.gather(5, idle=True)
    chunk = source.gather(100_000, idle=True)
    assert chunk == range(15, 300_015, 3)
    assert len(pickle_chunk(chunk)[0]) < 100
    assert pickle.loads(pickle_chunk(chunk)[0]) == (chunk, False)
    assert pickle.loads(pickle_chunk(chunk[:7])[0]) == ([*chunk[:7]], False)  # where naming the class would take longer
    assert source.give_up() == []
    assert source.exhausted
    assert source.gather(5, idle=True) is None


@given(objects=st.lists(st.integers(), max_size=30), stop=st.integers(0, 30), size=st.integers(1, 7))
def test_abandoned_source_returns_what_it_has_not_handed_out(objects, stop, size):
    pulled = []
    source = IterableSource(pulled.append(item) or item for item in objects)
    handed = []
    while len(handed) < stop and not source.exhausted:
        handed += source.gather(size, idle=True) or []
    assert handed + source.give_up() == pulled
    assert source.exhausted


@given(objects=st.lists(st.integers(), max_size=30), size=st.integers(1, 7))
def test_a_queue_hands_out_each_object_once(objects, size):
    source = QueueSource()
    for item in objects:
        source.put(item)
    handed = source.gather(size, idle=False) or []
    assert handed == (objects[:size] if len(objects) >= size else [])
    source.close()
    while not source.exhausted:
        handed += source.gather(size, idle=False) or []
    assert handed == objects


class Clockwork:
    """A source with a pace of its own, that says what had been handed out before each pull."""

    def __init__(self, pauses):
        self.pauses = pauses

    def __iter__(self):
        import threading

        for number, pause in enumerate(self.pauses):
            threading.Event().wait(pause)
            yield number


def test_slow_source_does_not_fill_a_chunk_for_an_idle_worker():
    source = IterableSource(iter(Clockwork([0.0, 0.03, 0.03, 0.03])))
    assert [source.gather(50, idle=True) for _ in range(4)] == [[0], [1], [2], [3]]


def test_a_fast_source_fills_its_chunks():
    source = IterableSource(iter(range(1000)))
    assert source.gather(50, idle=True) == [0]
    sizes = [len(source.gather(50, idle=True) or ()) for _ in range(10)]
    assert max(sizes) == 50


def test_slow_source_is_not_read_while_chunks_wait_for_a_worker():
    source = IterableSource(iter(Clockwork([0.0, 0.05, 0.0, 0.05])))
    assert source.gather(50, idle=True) == [0]
    assert source.gather(50, idle=False) is None
    assert not source.ready  # what is in hand comes first
    assert source.gather(50, idle=False) is None
    assert source.gather(50, idle=True) == [1]
    assert source.ready
