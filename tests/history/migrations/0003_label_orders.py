"""With the historical apps, a queryset of its own, and a plain RunPython that maps a historical queryset."""

from django.db import migrations

from poolsave import pooled_operation
from poolsave.migrations import RunPooled


def unlabelled_orders(apps):
    return (
        apps.get_model("history", "Order")
        .objects.filter(label="", customer__last_name__gt="")
        .select_related("customer")
    )


def label_order(order, apps):
    customers = apps.get_model("history", "Customer").objects.using(order._state.db)
    order.label = f"{customers.get(pk=order.customer_id).last_name} {order.customer.first_name}"
    order.save()


@pooled_operation(progress=False)
def shout_label(order, alias):
    order.label = f"{order.label} of {order.customer.last_name}!"
    order.save(using=alias)


def shout_labels(apps, schema_editor):
    alias = schema_editor.connection.alias
    operation = shout_label.using(databases=(alias,), on_failure="raise").bind(alias=alias)
    operation.map(apps.get_model("history", "Order").objects.using(alias).select_related("customer"))


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("history", "0002_join_names")]
    operations = [
        RunPooled(label_order, queryset=unlabelled_orders, reverse_fn=RunPooled.noop, elidable=True),
        migrations.RunPython(shout_labels, migrations.RunPython.noop),
    ]
