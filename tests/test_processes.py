"""A fork of the process that has imported everything is, to a test, a process of its own."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.processes import run_forked

PROBE = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("PROBE"), sys.stdin.read(), __name__, os.getpid()]))
print("an error", file=sys.stderr)
os.environ["PROBE"] = "changed"
"""


def test_it_has_arguments_folder_environment_and_output_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = set()
    for name, value in (("one", None), ("two", "set"), ("three", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "probe.py").write_text(PROBE)
        with monkeypatch.context() as patch:
            if value is not None:
                patch.setenv("PROBE", value)
            done = run_forked("probe", name, "ü\n", cwd=folder)
        *said, pid = json.loads(done.stdout)
        assert said == [[name, "ü\n"], str(folder), value, "", "__main__"]
        assert done.stderr == "an error\n"
        pids.add(pid)
    assert len(pids) == 3


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a message')", 1, "a message\n"),
        ("raise KeyError('x')", 1, "KeyError: 'x'\n"),
        ("os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_its_end_is_the_interpreters_own(end: str, status: int, said: str, tmp_path: Path) -> None:
    registered = "atexit.register(print, 'at the end')"
    (tmp_path / "ends.py").write_text(f"import atexit, os, sys\n{registered}\n{end}\n")
    done = run_forked("ends", cwd=tmp_path)
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert done.stdout == ("" if status == -9 else "at the end\n")


def test_it_is_killed_when_it_takes_too_long_and_the_next_one_runs(tmp_path: Path) -> None:
    """Only its end makes way for the next."""
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(10_000)\n")
    (tmp_path / "ends.py").write_text("print('the next')\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_forked("waits", cwd=tmp_path, timeout=0.1)
    assert run_forked("ends", cwd=tmp_path).stdout == "the next\n"
