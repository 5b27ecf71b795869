"""Articles, whose slugs are filled by a backfill."""

from django.db import models


class Article(models.Model):
    title = models.CharField(max_length=100)
    slug = models.SlugField(max_length=100, unique=True, null=True)  # noqa: DJ001  unique, and not filled at first
    revision = models.IntegerField(default=0)
