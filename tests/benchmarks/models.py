"""Rows that receivers write for users and entries, and a table to be updated."""

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


class Entry(models.Model):
    code = models.CharField(max_length=40, unique=True)
    amount = models.IntegerField(default=0)


class AuditRow(models.Model):
    entry = models.ForeignKey(Entry, on_delete=models.CASCADE)
    text = models.CharField(max_length=200)


@receiver(post_save, sender=Entry)
def write_audit_row(instance, created, **_others):
    if created:
        AuditRow.objects.create(entry=instance, text=f"{instance.code}: {instance.amount}")


@receiver(post_save, sender=User)
def write_profile(instance, created, **_others):
    if created:
        Profile.objects.create(user=instance, nickname=instance.username.title())
