"""Small Django projects in a folder of their own, for tests of commands that users type."""

import json
import os
import textwrap

MANAGE = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "conf"
        if __name__ == "__main__":
            execute_from_command_line(sys.argv)
    """
}


def write(folder, files):
    """Write the files, which are indented as it suits the test that holds them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())


def database(name, folder):
    """Give what Django makes a test database of, as JSON: on the server of the tests, or in the folder."""
    from django.conf import settings

    if name == "postgres":
        told = {name: settings.DATABASES["postgres"][name] for name in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")}
        return json.dumps({**told, "NAME": "postgres", "TEST": {"NAME": f"test_of_others_{os.getpid()}"}})
    return json.dumps(
        {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(folder / "db.sqlite3"),
            "OPTIONS": {"timeout": 30},
            "TEST": {"NAME": str(folder / "test.sqlite3")},
        }
    )
