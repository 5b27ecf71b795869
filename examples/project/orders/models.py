"""An order of a product, and a row that a receiver writes for each."""

from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver


class Order(models.Model):
    number = models.CharField(max_length=20, unique=True)
    product = models.ForeignKey("catalogue.Product", on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()
    total = models.DecimalField(max_digits=10, decimal_places=2)

    def save(self, *args: object, **kwargs: object) -> None:
        self.total = self.quantity * self.product.price
        super().save(*args, **kwargs)  # type: ignore[arg-type]


class Delivery(models.Model):
    order = models.OneToOneField(Order, on_delete=models.CASCADE)


@receiver(post_save, sender=Order)
def plan_delivery(instance: Order, created: bool, using: str, **_kwargs: object) -> None:
    if created:
        Delivery.objects.using(using).create(order=instance)
