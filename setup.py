"""Puts the commit that a wheel or a source distribution is built from into it; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).parent))
from lightning_gpt.version import COMMIT_FILE, commit


def write_commit(root: str) -> None:
    """Write the commit into the package below ``root``, if it is known."""
    found = commit()
    if found is not None:
        Path(root, "lightning_gpt", COMMIT_FILE).write_text(f"{found}\n")


class BuildPy(build_py):
    """The package's modules and data, and its commit; an editable installation asks git when it is run."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_commit(self.build_lib)


class Sdist(sdist):
    """The files of a source distribution, and the commit, which a wheel built from it then has too."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_commit(base_dir)


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
