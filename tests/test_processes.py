"""A fork of the process that has imported everything is, to a test, a process of its own."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.processes import run_forked, start_command

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
        ("sys.exit(259)", 3, ""),
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


def test_its_threads_end_before_its_exit_handlers(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(
        "import atexit, threading, time\natexit.register(print, 'the end')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('a thread'))).start()\n"
    )
    assert run_forked("ends", cwd=tmp_path).stdout == "a thread\nthe end\n"


def test_it_is_killed_when_it_takes_too_long_and_the_next_one_runs(tmp_path: Path) -> None:
    """Only its end makes way for the next."""
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(10_000)\n")
    (tmp_path / "ends.py").write_text("print('the next')\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_forked("waits", cwd=tmp_path, timeout=0.1)
    assert run_forked("ends", cwd=tmp_path).stdout == "the next\n"


LAUNCHER = """
import os, sys
from lightning.pytorch.strategies.launchers import subprocess_script
command = [sys.executable, "-m", "other", "argument"]
others = [subprocess_script.subprocess.Popen(command, env={**os.environ, "RANK": rank}, cwd=None) for rank in "123"]
assert all(other.poll() is None for other in others)
print("started", flush=True)
open("go", "w").close()
print([other.wait() for other in others], others[0].returncode)
"""
OTHER = """
import os, sys, time
while not os.path.exists("go"):
    time.sleep(0.01)
if os.environ["RANK"] == "3":
    os.kill(os.getpid(), 9)
said = [sys.argv[1], "lightning_gpt.commands.train" in sys.modules, os.getppid()]
sys.stdout.write(" ".join(map(str, said)) + os.linesep)  # in one write, though another writes at that time
sys.exit(int(os.environ["RANK"]))
"""


def test_the_processes_of_a_run_are_forks_too_and_run_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "launches.py").write_text(LAUNCHER)
    (tmp_path / "other.py").write_text(OTHER)
    (tmp_path / "parent.py").write_text("import os\nprint(os.getppid())\n")
    lines = run_forked("launches", cwd=tmp_path).stdout.splitlines()
    server = run_forked("parent", cwd=tmp_path).stdout.strip()
    assert (lines[0], lines[-1]) == ("started", "[1, 2, -9] 1")
    assert lines[1:-1] == [f"argument True {server}"] * 2


def test_one_that_is_left_running_is_heard_and_killed(tmp_path: Path) -> None:
    """While it runs, others do; what it says is read to the end of all that it has started."""
    (tmp_path / "sleeps.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(10_000)\n")
    (tmp_path / "ends.py").write_text("print('another')\n")
    process = start_command("generate", "--trust", "sleeps.py", cwd=tmp_path)
    assert run_forked("ends", cwd=tmp_path).stdout == "another\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    process.send_signal(9)
    assert process.communicate(timeout=60)[0] in ("", "here\n")  # it may have been killed before
    assert process.returncode == -9
