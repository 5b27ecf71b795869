"""Databases: connections, transactions and what each backend does differently."""
