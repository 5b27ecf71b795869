"""The simulated run gives what arithmetic gives, wherever one part alone is the limit."""

import pytest

from tests.benchmarks.simulation import Costs, Log, Plan, Station, simulate

PLAN = {"workers": 8, "wait": 0.01, "chunksize": 10, "per_chunk": False, "servers": 4}
FREE = {"caller": 1e-6, "row": 0.0, "database": 1e-7}


@pytest.mark.parametrize(
    ("plan", "costs", "limit", "rate"),
    [
        ({}, {}, "workers", 8 / 0.01),
        ({"workers": 100}, {"caller": 0.01}, "caller", 10 / 0.01),
        ({"workers": 100}, {"scheduler": 0.01}, "scheduler", 10 / 0.01),
        ({"workers": 100}, {"database": 0.002, "transaction": 0.002}, "database", 4 / 0.004),
        ({"workers": 100, "per_chunk": True}, {"database": 0.002, "transaction": 0.02}, "database", 4 / 0.004),
        ({}, {"network": 0.01}, "workers", 8 / 0.02),
        ({}, {"latency": 0.1}, "workers", 8 * 10 / 0.2),
        ({"flush": 0.005, "wait": 0.0, "workers": 50}, {"row": 1e-6}, "workers", 50 / 0.01),
    ],
)
def test_rate_is_that_of_the_part_which_is_the_limit(plan, costs, limit, rate):
    result = simulate(Plan(**{**PLAN, **plan}), Costs(**{**FREE, **costs}), chunks_per_worker=40)
    assert result.rate == pytest.approx(rate, rel=0.05)
    assert result.limit == limit


def test_station_serves_in_order_of_arrival():
    station = Station(2)
    assert [station.serve(0, 3), station.serve(1, 1), station.serve(1, 5), station.serve(9, 1)] == [3, 2, 7, 10]


def test_those_who_come_during_a_flush_share_the_next_one():
    log = Log(10)
    assert [log.serve(now) for now in (0, 1, 9, 10, 21, 40)] == [10, 20, 20, 20, 31, 50]
