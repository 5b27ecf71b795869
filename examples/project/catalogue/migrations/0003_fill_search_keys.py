"""The data step, over a pool: historical products have no save() of their own, so the function does its work."""

from django.db import migrations

from catalogue.search_keys import search_key
from poolsave.migrations import RunPooled


def fill_search_key(product):
    product.search_key = search_key(product.name)
    product.save(update_fields=["search_key"])


def products_without_search_key(apps):
    return apps.get_model("catalogue", "Product").objects.filter(search_key="")


class Migration(migrations.Migration):
    atomic = False  # what a worker has saved is committed
    dependencies = [("catalogue", "0002_product_search_key")]
    operations = [
        RunPooled(
            fill_search_key,
            queryset=products_without_search_key,
            reverse_fn=RunPooled.noop,
            transaction="chunk",
        ),
    ]
