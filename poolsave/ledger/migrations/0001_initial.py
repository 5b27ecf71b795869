import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Run",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=200, unique=True)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("due", "due"),
                            ("running", "running"),
                            ("pausing", "pausing"),
                            ("paused", "paused"),
                            ("cancelling", "cancelling"),
                            ("cancelled", "cancelled"),
                            ("finished", "finished"),
                            ("finished with failures", "finished with failures"),
                        ],
                        db_index=True,
                        default="due",
                        max_length=30,
                    ),
                ),
                ("stop_code", models.CharField(blank=True, max_length=20)),
                ("stop_reason", models.TextField(blank=True)),
                ("identity", models.JSONField(default=dict)),
                ("parameters", models.JSONField(blank=True, default=dict)),
                ("retry", models.JSONField(blank=True, null=True)),
                ("high", models.TextField(blank=True)),
                ("total", models.BigIntegerField(blank=True, null=True)),
                ("done", models.BigIntegerField(default=0)),
                ("failed", models.BigIntegerField(default=0)),
                ("skipped", models.BigIntegerField(default=0)),
                ("came_later", models.BigIntegerField(blank=True, null=True)),
                ("exactly_once", models.BooleanField(default=True)),
                ("seconds", models.FloatField(default=0.0)),
                ("rate", models.FloatField(blank=True, null=True)),
                ("throttle", models.TextField(blank=True)),
                ("started_by", models.CharField(blank=True, max_length=200)),
                ("holder", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("heartbeat_at", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "ordering": ["-pk"],
                "permissions": [
                    ("start_run", "Can start runs"),
                    ("control_run", "Can pause, resume and cancel runs"),
                    ("retry_failures", "Can try failures again"),
                ],
                "default_permissions": ("view", "delete"),
            },
        ),
        migrations.CreateModel(
            name="Lease",
            fields=[
                (
                    "run",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to="poolsave_ledger.run",
                    ),
                ),
                ("generation", models.BigIntegerField(default=0)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Failure",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.TextField()),
                (
                    "kind",
                    models.CharField(
                        choices=[("error", "error"), ("callback", "callback"), ("lost", "lost")],
                        default="error",
                        max_length=10,
                    ),
                ),
                ("cause", models.CharField(max_length=300)),
                ("error_class", models.CharField(max_length=200)),
                ("sqlstate", models.CharField(blank=True, max_length=10)),
                ("constraint", models.CharField(blank=True, max_length=200)),
                ("frame", models.CharField(blank=True, max_length=300)),
                ("message", models.TextField(blank=True)),
                ("traceback", models.TextField(blank=True)),
                ("attempts", models.IntegerField(default=1)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("resolved_at", models.DateTimeField(blank=True, null=True)),
                ("resolution", models.CharField(blank=True, max_length=20)),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="failures",
                        to="poolsave_ledger.run",
                    ),
                ),
            ],
            options={
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["run", "resolved_at", "cause"], name="poolsave_failure_cause")],
            },
        ),
        migrations.CreateModel(
            name="Chunk",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sequence", models.BigIntegerField()),
                ("low", models.TextField(blank=True)),
                ("high", models.TextField()),
                ("done", models.IntegerField(default=0)),
                ("failed", models.IntegerField(default=0)),
                ("skipped", models.IntegerField(default=0)),
                ("digest", models.BigIntegerField(null=True)),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="poolsave_ledger.run",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [models.UniqueConstraint(fields=("run", "sequence"), name="poolsave_chunk_once")],
            },
        ),
    ]
