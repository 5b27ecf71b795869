"""A caller that runs until SIGTERM, and then writes its report; a script that the chaos tests start."""

import json
import sys
from itertools import count

import django


def main():
    django.setup()
    from django.db import connections

    from tests.support import operations

    orders = json.loads(sys.argv[1])
    alias = orders["alias"]
    connections[alias].settings_dict["NAME"] = orders["name"]
    operation = operations.saves_and_signs.using(databases=(alias,), keep="all", **orders["options"])
    try:
        operation.bind(alias=alias, signed=orders["signed"]).map(f"p{number}" for number in count())
    except SystemExit as error:
        print(json.dumps([(outcome.item, outcome.status) for outcome in error.report]))
        raise


if __name__ == "__main__":
    main()
