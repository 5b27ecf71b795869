"""The ledger of durable runs: a Django app. With "poolsave.ledger" in INSTALLED_APPS, `map(..., run="name")` can be
stopped anywhere and goes on exactly there."""
