"""A profile for each user, and a welcome for each customer; receivers write both."""

from django.contrib.auth.models import User
from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver


class Profile(models.Model):
    user = models.OneToOneField(User, on_delete=models.CASCADE)
    api_key = models.CharField(max_length=64)


@receiver(post_save, sender=User)
def write_profile(instance, created, **_kwargs):
    if created:
        Profile.objects.create(user=instance, api_key=instance.api_key)


class Customer(models.Model):
    name = models.CharField(max_length=100, unique=True)
    email = models.EmailField()
    postcode = models.CharField(max_length=10)


class Welcome(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)


@receiver(post_save, sender=Customer)
def write_welcome(instance, created, **_kwargs):
    if created:
        Welcome.objects.create(customer=instance)
