"""Models as three well-known apps make them, whose extra rows come from receivers, parents and many queries."""

from django.db import models
from polymorphic.models import PolymorphicModel
from simple_history.models import HistoricalRecords


class Article(models.Model):
    """Each of its saves and deletions is a row of a second table."""

    title = models.CharField(max_length=100, unique=True)
    text = models.TextField(default="")
    history = HistoricalRecords()


class Shape(PolymorphicModel):
    """Its queryset gives instances of its children."""

    name = models.CharField(max_length=100, unique=True)
    area = models.IntegerField(default=0)


class Square(Shape):
    side = models.IntegerField()

    def save(self, *args, **kwargs):
        self.area = self.side**2
        super().save(*args, **kwargs)


class Strip(Shape):
    """One unit wide."""

    length = models.IntegerField()

    def save(self, *args, **kwargs):
        self.area = self.length
        super().save(*args, **kwargs)
