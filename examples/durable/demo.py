"""A backfill that is killed, goes on, is paused in the admin, resumed, and retried by the cause of its failures."""

import os
import subprocess
import sys
import time
from pathlib import Path

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db.models import Count, F, Value
from django.db.models.functions import Concat
from django.test import Client
from shop.models import Article

from poolsave.ledger.models import Run

NAME = "articles-slug"


def work_until(count):
    """Start a process that works on what is due, and wait until it has done so much."""
    worker = subprocess.Popen([sys.executable, Path(__file__).with_name("manage.py"), "poolsave", "work", "--once"])
    while worker.poll() is None and Article.objects.filter(revision=1).count() < count:
        time.sleep(0.02)
    return worker


def poolsave(*words):
    try:
        call_command("poolsave", *words)
    except CommandError as error:  # `status` and `work` say so of a run that needs someone
        print(error)


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    titles = ["" if n % 100 == 0 else "Untitled" if n % 40 == 0 else f"Article {n}" for n in range(1, 401)]
    Article.objects.bulk_create(Article(title=title) for title in titles)
    browser = Client(SERVER_NAME="localhost")
    browser.force_login(User.objects.create_superuser("ada"))
    poolsave("start", NAME)
    worker = work_until(40)
    worker.kill()
    worker.wait()
    poolsave("list")  # killed by SIGKILL
    worker = work_until(150)  # goes on where that was killed
    browser.post(f"/admin/poolsave_ledger/run/{Run.objects.get(name=NAME).pk}/pause/")
    worker.wait()
    poolsave("status", NAME)
    poolsave("resume", NAME)
    poolsave("work", "--once")
    Article.objects.filter(title="Untitled").update(title=Concat(F("title"), Value(" "), F("pk")))  # mended
    poolsave("retry", NAME, "--cause", "IntegrityError")
    poolsave("work", "--once")
    print("How many articles were saved how often:", *Article.objects.values_list("revision").annotate(Count("pk")))
