"""What `manage.py poolsave` and the admin can start."""

import time

from django.db.models import F
from django.utils.text import slugify

import poolsave
from shop.models import Article


@poolsave.backfill("articles-slug", queryset=Article.objects.all())
@poolsave.pooled_operation(workers=2, chunksize=10, progress=False)
def fill_slug(article):
    time.sleep(0.01)  # as if it were real work
    article.slug = slugify(article.title)
    if not article.slug:
        raise ValueError(f"article {article.pk} has no title")
    article.revision = F("revision") + 1  # a function that must not run twice for an article
    article.save()
