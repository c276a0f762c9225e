"""The shell's completion, in a real bash."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_gpt.commands import COMMANDS
from tests.processes import must_run, run_command

needs_shtab = pytest.mark.skipif(importlib.util.find_spec("shtab") is None, reason="shtab is not installed")

# what bash does at a press of the tab key: it calls the function that is registered for the command, with the words
_PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p lightning-gpt | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" lightning-gpt "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    path = folder / "lightning-gpt"
    path.write_text(must_run("completion", cwd=folder).stdout)
    (folder / "corner.yaml").write_text("")
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    command = [str(shutil.which("bash")), "-c", _PRESS_TAB, "bash", str(script), "lightning-gpt", *words]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@needs_shtab
def test_bash_completes_every_command(script: Path) -> None:
    assert set(COMMANDS) <= completed(script, "")
    assert completed(script, "gen") == {"generate"}


@needs_shtab
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fit", "--trainer.max_st"), {"--trainer.max_steps"}),
        (("fit", "--model.optimization.weight"), {"--model.optimization.weight_decay"}),
        (("plan", "--devices_"), {"--devices_file"}),
        (("plan", "--trainer.max_st"), {"--trainer.max_steps"}),
        (("doctor", "--off"), {"--offline"}),
        (("study", "--report"), {"--report_only"}),
        (("completion", "--sh"), {"--shell"}),
        (("prepare", "--remove"), {"--remove_duplicates"}),
        (("generate", "--strategy", ""), {"multinomial", "greedy", "beam"}),
        (("fit", "--config", "cor"), {"corner.yaml"}),
    ],
)
def test_bash_completes_options_values_and_files(script: Path, words: tuple[str, ...], expected: set[str]) -> None:
    assert completed(script, *words) == expected


@needs_shtab
def test_every_command_has_its_options(script: Path) -> None:
    for command in COMMANDS:
        offered = completed(script, command, "--")
        assert {"--help", "--trust", "--debug"} <= offered
        assert len(offered) > 3, f"{command} has no options of its own"


def test_another_shell_is_refused_in_a_line(tmp_path: Path) -> None:
    done = run_command("completion", "--shell", "fish", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
