"""Many calls of the command in one process, for calls that are refused before anything starts.

``python -m tests.many_calls CALLS`` reads a JSON list of command lines from the file CALLS. It prints a JSON list of
the exit statuses, the outputs, and which of the files ``imported`` and ``called`` each left in the working folder.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from lightning_gpt.cli import main


def _answer(call: list[str]) -> dict[str, object]:
    sys.argv = ["lightning-gpt", *call]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main()
        except SystemExit as end:
            status = end.code
    left = [file for file in map(Path, ("imported", "called")) if file.exists()]
    for file in left:
        file.unlink()
    return {"status": status, "out": out.getvalue(), "errors": errors.getvalue(), "left": [file.name for file in left]}


if __name__ == "__main__":
    print(json.dumps([_answer(call) for call in json.loads(Path(sys.argv[1]).read_text())]))
