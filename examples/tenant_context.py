"""Write notes for two tenants, whose name the model takes from a context variable: `carry` takes it to the workers.

    python examples/tenant_context.py
    python examples/tenant_context.py --database postgres --start-method spawn

Without `carry` a worker does not see what the caller has set, and each save() fails.
"""

import os

import django
from _script import parse_options, scratch_database

if __name__ == "__main__":
    OPTIONS = parse_options(__doc__, notes=1_000)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from tenants.models import CURRENT_TENANT, Note

from poolsave import pooled_operation


@pooled_operation(transaction="chunk", carry=[CURRENT_TENANT])
def write_note(text):
    Note(text=text).save()  # which asks CURRENT_TENANT


def main(options):
    operation = write_note.using(workers=options.workers, start_method=options.start_method)
    for tenant in ("north", "south"):
        token = CURRENT_TENANT.set(tenant)  # as a middleware does for each request
        operation.map(f"note {number}" for number in range(options.notes)).raise_if_failed()
        CURRENT_TENANT.reset(token)
        print(f"{tenant}: {Note.objects.filter(tenant=tenant).count()} notes")


if __name__ == "__main__":
    with scratch_database():
        main(OPTIONS)
