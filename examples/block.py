"""Save objects as they turn up, and go on with those that are saved: a block, for work that is no single list.

    python examples/block.py
    python examples/block.py --database postgres --start-method spawn

Each call gives a `concurrent.futures.Future`. When the block ends, all calls are done and the workers are gone.
"""

import os
from concurrent.futures import as_completed
from pathlib import Path

import django
from _script import parse_options, scratch_database

if __name__ == "__main__":
    OPTIONS = parse_options(__doc__, folder=str(Path(django.__file__).parent / "core"))

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from documents.models import Document

from poolsave import concurrent_saves


def revise(pk):
    document = Document.objects.get(pk=pk)
    document.text += ", revised"
    document.save()
    return document.text


def main(options):
    with concurrent_saves(workers=options.workers, start_method=options.start_method) as saves:
        saved = [saves.save(Document(text=path.name)) for path in Path(options.folder).rglob("*.py")]
        revised = [saves.submit(revise, future.result().pk) for future in as_completed(saved)]
    print(saves.report)
    print("The last one:", revised[-1].result())


if __name__ == "__main__":
    with scratch_database():
        main(OPTIONS)
