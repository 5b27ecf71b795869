"""What the type checkers must know. Checked by mypy and pyright, and never run."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import assert_type

from django.contrib.auth.models import User
from django.core.checks import CheckMessage

from poolsave import (
    DROP,
    Carrier,
    Options,
    Outcome,
    OutcomeStream,
    Pipeline,
    PooledOperation,
    Preview,
    Report,
    concurrent_saves,
    pooled_operation,
)


@pooled_operation
def bare(row: dict[str, str]) -> int:
    return len(row)


@pooled_operation(workers=4, chunksize=50)
def with_options(number: int, *, factor: float = 1.0) -> float:
    return number * factor


assert_type(bare({"a": "b"}), int)
assert_type(with_options(3, factor=2.0), float)
assert_type(bare.map([{"a": "b"}]), Report[int])
assert_type(bare.map([]).values, list[int])
assert_type(bare.dry_run([], samples=3), Preview)
assert_type(bare.map([]).failures, list[Outcome[int]])
assert_type(with_options.starmap([(1,), {"number": 2}]), Report[float])
assert_type(with_options.stream([1], ordered=True), OutcomeStream[float])
assert_type(next(with_options.stream([1])), Outcome[float])
assert_type(with_options.stream([1]).report, Report[float])
assert_type(bare.using(workers=2)({}), int)
assert_type(with_options.bind(factor=2.0).map([1]), Report[float])
assert_type(bare.options, Options)
assert_type(bare.check(), list[CheckMessage])
assert_type(bare.check([{"a": "b"}]), list[CheckMessage])

bare(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with_options(1, fatcor=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def the_block(user: User) -> None:
    with concurrent_saves(workers=4) as saves:
        assert_type(saves.save(user), Future[User])
        assert_type(saves.submit(bare, {"a": "b"}), Future[int])
        assert_type(saves.submit(with_options, 1, factor=2.0), Future[float])
        assert_type(saves.map(with_options, [1, 2]), Report[float])
        saves.submit(bare, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Importer:
    @pooled_operation
    def row(self, row: str) -> int:
        return len(row)


assert_type(Importer().row.map(["a"]), Report[int])
assert_type(PooledOperation(len).func([1]), int)


class Tenant:
    def capture(self) -> str:
        return "tenant"

    @contextmanager
    def restore(self, state: str) -> Iterator[None]:
        yield


class Quiet:
    def capture(self) -> int:
        return 1

    def restore(self, state: int) -> None:
        return None


Options(carry=(Tenant(), Quiet(), ContextVar("actor", default="")), before_fork=(print,), after_fork=(print,))
Options(carry=(len,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
carrier: Carrier = Tenant()


@pooled_operation(transaction=None)
def parse(line: str) -> list[int]:
    return [int(part) for part in line.split()] or DROP


@pooled_operation(expand=True)
def parts(numbers: list[int], *, step: int = 1) -> Iterator[int]:
    yield from numbers[::step]


@pooled_operation
def save(number: int) -> User:
    return User(pk=number)


assert_type(parts([1]), list[int])
assert_type(parts.map([[1]]), Report[list[int]])
assert_type(parse | parts, Pipeline[str, int])
assert_type(parse | parts | save, Pipeline[str, User])
assert_type(parse | (parts | save), Pipeline[str, User])
assert_type(parse | parts.using(workers=2).bind(step=2) | with_options.using(executor="thread"), Pipeline[str, float])
report_of_a_pipeline: Report[User] = (parse | parts | save).map(["1 2"])
assert_type((parse | parts | save).map(["1 2"]).values, list[User])
assert_type((parse | parts | save).map(["1 2"]).stages[0].failed, int)
assert_type(next((parse | parts | save).stream(["1 2"], ordered=True)), Outcome[User])
assert_type((parse | parts | save).stream(["1 2"]).report.stages[0].failed, int)
assert_type((parse | parts | save).using(keep="all").bind(step=2), Pipeline[str, User])
assert_type((parse | parts | save)("1 2"), list[User])

_ = parse | save  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
_ = parse | parts | bare  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
_ = (parse | parts) | (bare | save)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
(parse | parts).map([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
_ = parse | len  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
