from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Customer",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("first_name", models.CharField(max_length=100, default="")),
                ("last_name", models.CharField(max_length=100, default="")),
                ("full_name", models.CharField(max_length=200, default="")),
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
