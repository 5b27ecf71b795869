"""A row that a receiver writes for each user, and a table to be updated."""

from django.contrib.auth.models import User
from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver


class Profile(models.Model):
    user = models.OneToOneField(User, on_delete=models.CASCADE)
    nickname = models.CharField(max_length=100)


class Product(models.Model):
    name = models.CharField(max_length=100)
    price = models.IntegerField(default=0)


class Note(models.Model):
    text = models.CharField(max_length=200)


@receiver(post_save, sender=User)
def write_profile(instance, created, **_others):
    if created:
        Profile.objects.create(user=instance, nickname=instance.username.title())
