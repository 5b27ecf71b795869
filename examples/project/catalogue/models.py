"""A product that makes its own search key, and a row for every time it was priced anew."""

from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver

from .search_keys import search_key


class Product(models.Model):
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    search_key = models.CharField(max_length=100, default="", db_index=True)

    def save(self, *args: object, **kwargs: object) -> None:
        self.search_key = search_key(self.name)
        super().save(*args, **kwargs)  # type: ignore[arg-type]


class Change(models.Model):
    product = models.ForeignKey(Product, on_delete=models.CASCADE)
    price = models.DecimalField(max_digits=8, decimal_places=2)


@receiver(post_save, sender=Product)
def note_change(instance: Product, using: str, **_kwargs: object) -> None:
    Change.objects.using(using).create(product=instance, price=instance.price)
