"""The new column, in a migration of its own: its rows are filled by the next one."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("catalogue", "0001_initial")]
    operations = [
        migrations.AddField("Product", "search_key", models.CharField(max_length=100, default="", db_index=True)),
    ]
