from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]
    operations = [
        migrations.CreateModel(
            "Customer",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("first_name", models.CharField(max_length=100, default="")),
                ("last_name", models.CharField(max_length=100, default="")),
                ("full_name", models.CharField(max_length=200, default="")),
                ("seller", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET(None), null=True)),
            ],
        ),
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("customer", models.ForeignKey("history.Customer", on_delete=models.CASCADE)),
                ("label", models.CharField(max_length=200, default="")),
            ],
        ),
    ]
