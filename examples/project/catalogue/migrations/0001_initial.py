"""The tables, and some thousand products, so that there is something to see."""

from decimal import Decimal

from django.db import migrations, models

COUNT = 5000
SORTS = ["Café au lait", "Crème brûlée", "Gewürz\u00a0Öl", "Smørrebrød", "Żubrówka"]


def write_products(apps, schema_editor):
    products = apps.get_model("catalogue", "Product").objects.using(schema_editor.connection.alias)
    products.bulk_create(
        products.model(name=f"{SORTS[number % len(SORTS)]} {number}", price=Decimal(number % 100 + 1))
        for number in range(COUNT)
    )


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Product",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100)),
                ("price", models.DecimalField(max_digits=8, decimal_places=2)),
            ],
        ),
        migrations.CreateModel(
            "Change",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("product", models.ForeignKey("catalogue.Product", on_delete=models.CASCADE)),
                ("price", models.DecimalField(max_digits=8, decimal_places=2)),
            ],
        ),
        migrations.RunPython(write_products, migrations.RunPython.noop),
    ]
