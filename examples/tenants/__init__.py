"""The app of tenant_context.py: notes that belong to the tenant at whose request they are written."""
