"""A study as a SLURM job array with one job per cell."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_gpt.studies.spec.study import Study

_SECONDS_TO_SAVE = 120


def array_script(
    study: Study, study_file: Path, folder: Path, options: Sequence[str] = (), *, tuning: bool = False
) -> str:
    """The text of a batch script whose jobs run one cell each, in this working directory and with this Python.

    ``options`` are added to the command line of each job. With ``tuning``, the cells are the trials of a first stage.

    Options that depend on the cluster, such as ``--time``, ``--partition`` and ``--gres``, are passed to ``sbatch``.
    """
    # -P: no module is looked for in the working folder
    call = [sys.executable, "-P", "-m", "lightning_gpt", "study", "--config", str(study_file.resolve())]
    call += ["--preset", study.preset] if study.preset else []
    call += ["--folder", str(folder.resolve()), *options]
    then = shlex.join([*call, "--slurm" if tuning else "--report_only", "true"])
    call += ["--tuning", "true"] if tuning else []
    return f"""\
#!/bin/bash
# {len(study.cells)} cells of the study {study.title}. Submit it with the options that your cluster needs, for example:
#   sbatch --time=04:00:00 --cpus-per-task=4 --gres=gpu:1 THIS_FILE
# A job that is stopped saves its state, and resumes when it is queued again. When all jobs are done, run:
#   {then}
#SBATCH --job-name={study.title}
#SBATCH --array=0-{len(study.cells) - 1}
#SBATCH --output={folder.resolve()}/slurm-{"tuning-" * tuning}%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{_SECONDS_TO_SAVE}
#SBATCH --requeue
cd {shlex.quote(str(Path.cwd()))} || exit 1
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
exec {shlex.join(call)} --cell "$SLURM_ARRAY_TASK_ID"
"""
