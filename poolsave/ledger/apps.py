"""The app config of the ledger."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["LedgerConfig"]


class LedgerConfig(AppConfig):
    """The tables of durable runs, and the command and admin pages for them."""

    name = "poolsave.ledger"
    label = "poolsave_ledger"
    verbose_name = "poolsave"
    default_auto_field = "django.db.models.BigAutoField"
