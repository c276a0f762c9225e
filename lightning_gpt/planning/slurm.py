"""A training in a layout as a SLURM job: torchrun on every node, requeued when its time is over."""

import shlex
from collections.abc import Sequence

_SECONDS_TO_SAVE = 120
_RESTARTS = 3


def training_script(
    *,
    name: str,
    runs: str,
    folder: str,
    python: str,
    fit: Sequence[str],
    nodes: int,
    per_node: int,
    trusted: Sequence[str],
) -> str:
    """The text of a batch script that trains on ``nodes`` nodes with ``per_node`` devices each.

    A job that SLURM stops saves its state and queues itself again; it then resumes from the newest ``last.ckpt`` of its
    run. Options that depend on the cluster, such as ``--time`` and ``--partition``, are given to ``sbatch``.

    Args:
        name: Name of the job.
        runs: The folder whose ``version_N`` are this run's.
        folder: The working folder.
        python: The Python to run.
        fit: The options of ``fit``.
        nodes: Number of nodes.
        per_node: Devices of each.
        trusted: The options that name trusted modules.
    """
    call = shlex.join([python, "-m", "torch.distributed.run"])
    machines = f"{_counted(nodes, 'node')} with {_counted(per_node, 'device')}" + " each" * (nodes > 1)
    fit_call = shlex.join(["-m", "lightning_gpt", "fit", *fit, *trusted])
    return f"""\
#!/bin/bash
# {machines}. Submit it with the options that your cluster needs, for example:
#   sbatch --time=24:00:00 --partition=gpu THIS_FILE
# A job that is stopped saves its state, queues itself again and resumes from the newest last.ckpt of its run.
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={per_node}
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{_SECONDS_TO_SAVE}
#SBATCH --requeue
cd {shlex.quote(folder)} || exit 1
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
last=$(ls -td {shlex.quote(runs)}/version_*/checkpoints/last.ckpt 2>/dev/null | head -n 1)
stop() {{
  kill -TERM "$training"
  wait "$training"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}}
trap stop TERM
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # processes that torchrun starts again do not look for those of before
srun {call} \\
  --nnodes={nodes} --nproc_per_node={per_node} --max_restarts={_RESTARTS} \\
  --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$host:29500" \\
  {fit_call} ${{last:+--ckpt_path "$last"}} &
training=$!
wait "$training"
"""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
