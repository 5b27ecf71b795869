"""Documents with a fingerprint, and a row for every change to one of them."""

import hashlib

from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver


class Document(models.Model):
    text = models.CharField(max_length=100)
    fingerprint = models.CharField(max_length=64, default="")
    saves = models.IntegerField(default=0)

    def save(self, *args, **kwargs):
        if not self.text:
            raise ValueError(f"document {self.pk} has no text")
        self.fingerprint = fingerprint(self.text)
        self.saves += 1
        super().save(*args, **kwargs)


class Change(models.Model):
    document = models.ForeignKey(Document, on_delete=models.CASCADE)


@receiver(post_save, sender=Document)
def note_change(instance, **_kwargs):
    Change.objects.create(document=instance)


def fingerprint(text):
    """The work that makes a pool worth while: about a millisecond."""
    return hashlib.pbkdf2_hmac("sha256", text.encode(), b"salt", 2_000).hex()
