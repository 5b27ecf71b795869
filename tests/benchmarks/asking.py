"""Ratios that the figures are asked for, as plain text: a pure function of the raw figures."""

from statistics import median

from tests.benchmarks.rendering import middle, number, values


def ratios(found):
    """What was asked, what was wanted, and what was found; parts that were not measured are left out."""
    parts = {part["key"]: part for part in found["parts"]}
    lines = []
    for key, asked, wanted, ratio in QUESTIONS:
        if key in parts:
            given = ratio(parts[key])
            lines.append(f"{key:20} {asked:68} wanted {wanted:8} found {number(given) or '-'}")
    return "\n".join(lines)


def best(part, contender, *settings, case=""):
    """The best median of a contender with all of these settings; None if there is none. Write-behind has to be asked
    for."""
    batched = BATCHED in settings
    found = [
        middle(part, cell)
        for cell in part["cells"]
        if (cell["contender"], cell["case"]) == (contender, case)
        and cell["values"]
        and all(setting in cell["setting"] for setting in settings)
        and (BATCHED in cell["setting"]) == batched
    ]
    return min(found, default=None)


def best_peer(part):
    """The best median of whoever is neither poolsave nor a loop."""
    found = [
        middle(part, cell)
        for cell in part["cells"]
        if cell["values"] and not cell["contender"].startswith(("poolsave", "plain loop"))
    ]
    return min(found, default=None)


def over(above, below):
    """The quotient, if both are there."""
    return above / below if above is not None and below else None


def times_as_fast(*settings, contender="poolsave process", than="plain loop"):
    return lambda part: over(best(part, than), best(part, contender, *settings))


def growth(part):
    """How much more a caller's memory grows with the longest input than with the shortest."""
    cells = [cell for cell in part["cells"] if cell["contender"].endswith("keep=failures") and cell["values"]]
    return median(values(part, cells[-1])) - median(values(part, cells[0])) if cells else None


def memory_of_a_table(part):
    cells = [cell for cell in part["cells"] if cell["contender"] == "poolsave process" and cell["grown"]]
    return median(cells[-1]["grown"]) if cells else None


def dead(case):
    def ratio(part):
        clean, killed = [cell for cell in part["cells"] if cell["case"] == case]
        return over(middle(part, killed), middle(part, clean)) if clean["values"] and killed["values"] else None

    return ratio


def slower_than_the_best(part):
    """In the worst case: auto over the best of all others."""
    found = []
    for case in cases(part):
        others = [
            middle(part, cell) for cell in part["cells"] if cell["case"] == case and "auto" not in cell["contender"]
        ]
        found.append(over(best(part, "poolsave auto", case=case), min(others, default=None)))
    return max(found) if None not in found else None


def slowest(contender, than):
    """In the worst case: how many times as fast as another one a contender is."""

    def ratio(part):
        found = [over(best(part, than, case=case), best(part, contender, case=case)) for case in cases(part)]
        return min(found) if None not in found else None

    return ratio


def cases(part):
    return dict.fromkeys(cell["case"] for cell in part["cells"])


def cpu_over_chunk(part):
    """The CPU time of the caller, the workers and the server with `batch_writes`, over that without."""
    with_it, without = (
        [
            median(map(sum, cell["cpu"]))
            for cell in part["cells"]
            if is_chunk_mode(cell) and (BATCHED in cell["setting"]) == batched
        ]
        for batched in (True, False)
    )
    return over(min(with_it, default=None), min(without, default=None))


def is_chunk_mode(cell):
    return cell["contender"] == "poolsave process" and CHUNK in cell["setting"] and cell.get("cpu")


AUTO = "poolsave auto"
BATCHED, AS_MANY_AS_PAY = "batch_writes=True", "workers=auto"
CHUNK, OBJECT, NONE = "transaction=chunk", "transaction=object", "transaction=None"
BY_BATCHES = [
    *(("users_postgres", ">= 10"), ("audited_postgres", ">= 15"), ("table", ">= 12"), ("taken", ">= 5")),
    *(("users_far", ">= 50"), ("audited_far", ">= 30"), ("table_far", ">= 18")),
]
IN_THE_WORST_CASE = [
    ("auto: time, over that of the best other, in the worst case", "", slower_than_the_best),
    ("auto: times as fast as the loop, in the worst case", ">= 0.95", slowest(AUTO, "plain loop")),
    ("the same over the loop with atomic()", ">= 0.95", slowest(AUTO, "loop, atomic()")),
    ("auto, transaction=None, over the loop", ">= 0.95", slowest(f"{AUTO}, None", "plain loop")),
]
QUESTIONS = [
    ("no_ops", "auto: time, over that of the best peer", "<= 1", lambda part: over(best(part, AUTO), best_peer(part))),
    (
        "no_ops",
        "process, its best chunk size: time, over that of the best peer",
        "",
        lambda part: over(best(part, "poolsave process"), best_peer(part)),
    ),
    (
        "no_op_rows",
        "process: time, over that of the best peer",
        "",
        lambda part: over(best(part, "poolsave process"), best_peer(part)),
    ),
    (
        "single_no_ops",
        "process, chunksize=1: time, over that of ProcessPoolExecutor.map",
        "<= 0.333",
        lambda part: over(best(part, "poolsave process"), best(part, "ProcessPoolExecutor.map")),
    ),
    ("users_postgres", "chunk: times as fast as the loop", ">= 3.5", times_as_fast(CHUNK)),
    ("users_postgres", "chunk: times as fast as the article", ">= 2", times_as_fast(CHUNK, than="article")),
    (
        "users_postgres",
        "chunk: speed, over that of the hand-written best",
        ">= 0.85",
        times_as_fast(CHUNK, than="hand-written best"),
    ),
    ("users_postgres", "default options: times as fast as the loop", ">= 2", times_as_fast(OBJECT)),
    ("users_far", "workers=auto, object: times as fast as the loop", ">= 10", times_as_fast(AS_MANY_AS_PAY, OBJECT)),
    (
        "users_far",
        "workers=auto, object: speed, over that of 16 workers",
        ">= 0.9",
        lambda part: over(
            best(part, "poolsave process", "workers=16", OBJECT), best(part, "poolsave process", AS_MANY_AS_PAY, OBJECT)
        ),
    ),
    (
        "users_far",
        "workers=auto, object: times as fast as the article",
        ">= 1",
        times_as_fast(AS_MANY_AS_PAY, OBJECT, than="article"),
    ),
    ("users_sqlite", "auto, object: times as fast as the loop", ">= 1", times_as_fast(OBJECT, contender=AUTO)),
    ("users_sqlite", "auto, chunk: times as fast as the loop", ">= 1.4", times_as_fast(CHUNK, contender=AUTO)),
    ("users_sqlite_default", "auto, object: times as fast as the loop", ">= 1", times_as_fast(OBJECT, contender=AUTO)),
    ("users_sqlite_default", "auto, chunk: times as fast as the loop", ">= 1.4", times_as_fast(CHUNK, contender=AUTO)),
    (
        "users_sqlite",
        "serial, object: times as fast as the loop",
        "",
        times_as_fast(OBJECT, contender="poolsave serial"),
    ),
    ("users_sqlite", "serial, chunk: times as fast as the loop", "", times_as_fast(CHUNK, contender="poolsave serial")),
    ("hashing", "default options: times as fast as the loop", ">= 1.9", times_as_fast(OBJECT)),
    *(
        (
            part,
            f"16 threads, {transaction}: times as fast as the loop",
            ">= 8",
            times_as_fast(f"transaction={transaction}", contender="poolsave thread"),
        )
        for part in ("waiting", "waiting_one_row")
        for transaction in ("object", "chunk")
    ),
    (
        "waiting",
        "16 threads, atomic() in the function: times as fast as the loop",
        ">= 8",
        times_as_fast(NONE, contender="poolsave thread"),
    ),
    (
        "waiting",
        "pipeline of threads and processes: times as fast as the loop",
        ">= 8",
        times_as_fast(contender="poolsave pipeline"),
    ),
    ("table", "chunk: times as fast as the loop", ">= 3.5", times_as_fast(CHUNK)),
    *((part, "batch_writes: times as fast as the loop", wanted, times_as_fast(BATCHED)) for part, wanted in BY_BATCHES),
    *(
        (part, "batch_writes: CPU time, over that of chunk", wanted, cpu_over_chunk)
        for part, wanted in (("users_postgres", "<= 0.4"), ("audited_postgres", "<= 0.3"), ("table", "<= 0.25"))
    ),
    ("whole_table", "chunk: growth of the caller over the whole table, in MB", "flat", memory_of_a_table),
    ("memory", "keep=failures: growth from the shortest to the longest input, in MB", "< 40", growth),
    ("recovery", "object: time with killed workers, over that without", "< 1.5", dead("object")),
    ("recovery", "chunk: time with killed workers, over that without", "< 1.5", dead("chunk")),
    *((part, *question) for part in ("few", "many") for question in IN_THE_WORST_CASE),
]
