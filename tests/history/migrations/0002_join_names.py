from django.db import migrations

from poolsave.migrations import RunPooled


def join_names(customer):
    if not customer.last_name:
        raise ValueError(f"customer {customer.pk} has no last name")
    customer.full_name = f"{customer.first_name} {customer.last_name}"
    customer.save()


def part_names(customer):
    customer.first_name, _, customer.last_name = customer.full_name.partition(" ")
    customer.full_name = ""
    customer.save()


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("history", "0001_initial")]
    operations = [RunPooled(join_names, queryset="Customer", reverse_fn=part_names, chunksize=3)]
