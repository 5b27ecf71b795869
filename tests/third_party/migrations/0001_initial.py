"""Like the one that `makemigrations` writes: tables that point to the users of the project need a migration."""

import simple_history.models
from django.conf import settings
from django.db import migrations, models


def key():
    return ("id", models.BigAutoField(primary_key=True, auto_created=True, serialize=False, verbose_name="ID"))


def parent():
    return (
        "shape_ptr",
        models.OneToOneField(
            "third_party.Shape",
            models.CASCADE,
            auto_created=True,
            parent_link=True,
            primary_key=True,
            serialize=False,
        ),
    )


class Migration(migrations.Migration):
    initial = True
    dependencies = [
        ("contenttypes", "0002_remove_content_type_name"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.CreateModel(
            "Article",
            [
                key(),
                ("title", models.CharField(max_length=100, unique=True)),
                ("text", models.TextField(default="")),
            ],
        ),
        migrations.CreateModel(
            "HistoricalArticle",
            [
                ("id", models.BigIntegerField(auto_created=True, blank=True, db_index=True, verbose_name="ID")),
                ("title", models.CharField(db_index=True, max_length=100)),
                ("text", models.TextField(default="")),
                ("history_id", models.AutoField(primary_key=True, serialize=False)),
                ("history_date", models.DateTimeField(db_index=True)),
                ("history_change_reason", models.CharField(max_length=100, null=True)),
                (
                    "history_type",
                    models.CharField(choices=[("+", "Created"), ("~", "Changed"), ("-", "Deleted")], max_length=1),
                ),
                (
                    "history_user",
                    models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"),
                ),
            ],
            options={
                "verbose_name": "historical article",
                "verbose_name_plural": "historical articles",
                "ordering": ("-history_date", "-history_id"),
                "get_latest_by": ("history_date", "history_id"),
            },
            bases=(simple_history.models.HistoricalChanges, models.Model),
        ),
        migrations.CreateModel(
            "Shape",
            [
                key(),
                ("name", models.CharField(max_length=100, unique=True)),
                ("area", models.IntegerField(default=0)),
                (
                    "polymorphic_ctype",
                    models.ForeignKey(
                        "contenttypes.ContentType",
                        models.CASCADE,
                        editable=False,
                        null=True,
                        related_name="polymorphic_%(app_label)s.%(class)s_set+",
                    ),
                ),
            ],
            options={"abstract": False},
        ),
        migrations.CreateModel(
            "Square",
            [parent(), ("side", models.IntegerField())],
            options={"abstract": False},
            bases=("third_party.shape",),
        ),
        migrations.CreateModel(
            "Strip",
            [parent(), ("length", models.IntegerField())],
            options={"abstract": False},
            bases=("third_party.shape",),
        ),
    ]
