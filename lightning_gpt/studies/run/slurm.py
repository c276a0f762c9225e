"""A study as a SLURM job array: a job a cell."""

import shlex
import sys
from pathlib import Path

from lightning_gpt.studies.spec.study import Study

_SECONDS_TO_SAVE = 120


def array_script(study: Study, study_file: Path, folder: Path) -> str:
    """The text of a batch script whose jobs run one cell each, from this working directory with this Python.

    ``--time``, ``--partition``, ``--gres`` and the like are the cluster's and are given to ``sbatch``.
    """
    call = [sys.executable, "-m", "lightning_gpt", "study", "--config", str(study_file.resolve())]
    call += ["--preset", study.preset] if study.preset else []
    call += ["--folder", str(folder.resolve())]
    return f"""\
#!/bin/bash
# {len(study.cells)} cells of the study {study.title}. Submit with what your cluster asks for, for example:
#   sbatch --time=04:00:00 --cpus-per-task=4 --gres=gpu:1 THIS_FILE
# A job that is stopped saves where it stands, and goes on when it is queued again. When all are done:
#   {shlex.join([*call, "--report_only", "true"])}
#SBATCH --job-name={study.title}
#SBATCH --array=0-{len(study.cells) - 1}
#SBATCH --output={folder.resolve()}/slurm-%a.log
#SBATCH --signal=B:TERM@{_SECONDS_TO_SAVE}
#SBATCH --requeue
cd {shlex.quote(str(Path.cwd()))} || exit 1
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
exec {shlex.join(call)} --cell "$SLURM_ARRAY_TASK_ID"
"""
