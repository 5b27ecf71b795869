"""`manage.py poolsave`, in a module of its name, as Django looks for it."""
