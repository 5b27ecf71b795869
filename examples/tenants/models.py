"""A note knows its tenant from a context variable, which a middleware sets for each request."""

from contextvars import ContextVar

from django.db import models

CURRENT_TENANT = ContextVar("current_tenant")


class Note(models.Model):
    tenant = models.CharField(max_length=50)
    text = models.CharField(max_length=100)

    def save(self, *args, **kwargs):
        self.tenant = CURRENT_TENANT.get()
        super().save(*args, **kwargs)
