from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("history", "0003_label_orders")]
    operations = [
        migrations.RemoveField("Customer", "first_name"),
        migrations.RemoveField("Customer", "last_name"),
    ]
