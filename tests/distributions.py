"""Hold what `python -m build` made against the repository: `python -m tests.distributions dist`.

The wheel has the tracked files of `poolsave` and no others, and the sdist has all tracked files. The wheel, installed
alone in a fresh environment, runs the script of README. `nox -s dist` calls this; it needs git and a package index.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from tests.docs.pages import ROOT, python_of
from tests.docs.test_readme import README, SETTINGS, shown_by_readme, without_figures


def check_distributions(folder):
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    compare(wheel, {name for name in names if ".dist-info/" not in name}, tracked("poolsave"))
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    compare(sdist, names - {"PKG-INFO"}, tracked("."))
    with tempfile.TemporaryDirectory() as place:
        run_the_script(wheel, Path(place))


def tracked(folder):
    listed = subprocess.check_output(["git", "ls-files", "-z", folder], cwd=ROOT, text=True)
    return set(listed.split("\0")) - {""}


def compare(file, found, wanted):
    if found != wanted:
        sys.exit(f"{file.name} lacks {sorted(wanted - found)} and has besides {sorted(found - wanted)}")
    print(f"{file.name} has the {len(found)} files that it has to have")


def run_the_script(wheel, folder):
    """Run README's script where nothing is but a project's settings and the installed wheel."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel.resolve()], cwd=folder, check=True)
    (folder / "mysite").mkdir()
    (folder / "mysite" / "settings.py").write_text(SETTINGS)
    (folder / "create_users.py").write_text(python_of(README)[0])

    def run(*arguments):
        environment = {"PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        return subprocess.check_output([python, *arguments], cwd=folder, env=environment, text=True, timeout=100)

    where, version = run("-c", "import poolsave; print(poolsave.__file__, poolsave.__version__)").split()
    if not Path(where).is_relative_to(folder / "env") or f"-{version}-" not in wheel.name:
        sys.exit(f"{wheel.name} was to be tried, and {version} in {where} was")
    run("-m", "django", "migrate", "-v0")
    printed = run("create_users.py")
    if without_figures(printed) != without_figures(shown_by_readme()):
        sys.exit(f"README's script prints\n{printed}")
    print(f"{wheel.name}, installed alone, runs the script of README:\n{printed}")


if __name__ == "__main__":
    check_distributions(Path(sys.argv[1]))
