"""Small Django projects in a folder of their own, for tests of commands that users type."""

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
