"""Python, the packages and their versions."""

import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gpt import __version__
from lightning_gpt.doctor.finding import CheckResult, ok, problem, warning
from lightning_gpt.hardware import nvidia_gpus

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAME = "lightning-gpt"
_ROOT = Path(__file__).parents[2]
_MODULES = {"PyYAML": "yaml", "Jinja2": "jinja2"}  # where the module is not named like its package


def python() -> Iterator[CheckResult]:
    """Python against the versions that the package supports, and where the package is."""
    from packaging.specifiers import SpecifierSet

    found, (supported, _) = platform.python_version(), _declared()
    if SpecifierSet(supported).contains(found, prereleases=True):
        yield ok(f"{found}; lightning-gpt {__version__} in {_ROOT}")
    else:
        yield problem(f"{found}, but lightning-gpt needs {supported}", f"install it with a Python {supported}")


def packages() -> Iterator[CheckResult]:
    """Each dependency: installed, in the supported range, and importable."""
    required = [each for each in _requirements() if each.marker is None]
    missing = [each.name for each in required if _version(each.name) is None]
    wrong = [finding for each in required if (finding := _problem_of(each)) is not None]
    if missing:
        yield problem(f"not installed: {', '.join(missing)}", "run pip install -e . in the checkout")
    yield from wrong
    if not missing and not wrong:
        yield ok(f"all {len(required)} dependencies can be imported, in supported versions")


def extras() -> Iterator[CheckResult]:
    """The optional packages for tests and development."""
    for extra in ("test", "dev"):
        optional = [each.name for each in _requirements() if f'extra == "{extra}"' in str(each.marker)]
        missing = [name for name in optional if _version(name) is None]
        without = f"; without {', '.join(missing)} (pip install -e '.[{extra}]')" if missing else ""
        yield ok(f"{extra}, optional: {len(optional) - len(missing)} of {len(optional)} packages{without}")


def duplicates() -> Iterator[CheckResult]:
    """Packages that are on the path twice, or in two versions that do not fit together."""
    copies = {(_normal(dist.name), dist.version, str(dist.locate_file(""))) for dist in distributions()}
    names = Counter(name for name, _, _ in copies)
    for name in sorted({_NAME, *(_normal(each.name) for each in _requirements())}):
        if names[name] > 1:
            yield warning(
                f"{name} is installed {names[name]} times on Python's path; the first one found is used",
                f"remove all but one: pip uninstall {name}, or clear PYTHONPATH",
            )
    lightning, separate = _version("lightning"), _version("pytorch-lightning")
    if lightning and separate and lightning != separate:
        yield warning(
            f"lightning {lightning} and pytorch-lightning {separate} differ; their classes do not mix",
            f"pip install pytorch-lightning=={lightning}",
        )


def torch_build() -> Iterator[CheckResult]:
    """Whether PyTorch was built for the GPU that this machine has."""
    import torch

    gpus, cuda = nvidia_gpus(), torch.version.cuda or torch.version.hip
    if not cuda and gpus:
        yield warning(
            f"torch {torch.__version__} is built for CPUs only, but this machine has {gpus} NVIDIA GPU(s)",
            "install a CUDA build: https://pytorch.org/get-started/locally",
        )
    elif cuda and gpus and not torch.cuda.is_available():
        yield problem(
            f"torch {torch.__version__} (CUDA {cuda}) cannot use this machine's {gpus} NVIDIA GPU(s)",
            "update the NVIDIA driver, or install the torch build for its CUDA version; see nvidia-smi",
        )
    elif cuda and not gpus:
        yield ok(f"torch {torch.__version__}, built for CUDA {cuda}; no GPU here (the CPU build takes less space)")
    else:
        yield ok(f"torch {torch.__version__}, built for {f'CUDA {cuda}' if cuda else 'CPUs'}")


def _declared() -> tuple[str, list[str]]:
    """The Python versions and requirements that the package declares, in its metadata or its pyproject.toml."""
    try:
        metadata = distribution(_NAME)
        return metadata.metadata["Requires-Python"], metadata.requires or []
    except PackageNotFoundError:
        import tomllib  # Python 3.11 has it, and this module must be importable in an older one

        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        optional = [
            f'{requirement}; extra == "{extra}"'
            for extra, requirements in project["optional-dependencies"].items()
            for requirement in requirements
        ]
        return project["requires-python"], [*project["dependencies"], *optional]


def _requirements() -> "Iterable[Requirement]":
    from packaging.requirements import Requirement

    return [each for text in _declared()[1] if (each := Requirement(text)).name != _NAME]


def _problem_of(requirement: "Requirement") -> CheckResult | None:
    """What is wrong with a dependency that is installed; None if nothing is."""
    found, install = _version(requirement.name), f"pip install '{requirement}'"
    if found is None:
        return None
    if not requirement.specifier.contains(found, prereleases=True):
        return problem(f"{requirement.name} {found} is installed, but {requirement.specifier} is needed", install)
    try:
        import_module(_MODULES.get(requirement.name, requirement.name))
    except Exception as error:  # a broken package may raise anything
        return problem(
            f"{requirement.name} {found} cannot be imported: {type(error).__name__}: {error}"[:300],
            f"pip install --force-reinstall '{requirement}'",
        )
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    """A package's name as pip compares it."""
    return name.lower().replace("_", "-")
