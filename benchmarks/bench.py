"""The state of one benchmark run: its settings, the projects available, and times used by several rows."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch

from benchmarks import machine, peers
from benchmarks.remote import RemoteWorker
from benchmarks.rounds import interleaved
from benchmarks.workload import Device, Spec, Workload
from lightning_gpt.training.precision import fastest_precision

OURS = "ours"
PRODUCT = "product"
"""Not a project: the FLOP/s of a plain matrix product, measured in the same rounds."""


@dataclass
class Bench:
    """One benchmark run.

    Args:
        workload: The work that every project does.
        device: Where the models run.
        rounds: Number of measured rounds.
        peer_dir: Folder with the clones of nanoGPT and minGPT.
        litgpt_python: Python interpreter of an environment with litgpt, if it is not installed in this one.
        checkpoint: A trained model to measure.
    """

    workload: Workload
    device: Device
    rounds: int
    peer_dir: str | None
    litgpt_python: str | None
    checkpoint: str | None = None
    _step_times: dict[tuple[int, bool], dict[str, list[float]]] = field(default_factory=dict)

    @property
    def torch_device(self) -> torch.device:
        """The device as a ``torch.device``."""
        return torch.device(self.device)

    @cached_property
    def bf16_reason(self) -> str | None:
        """Why bf16 is not measured on this machine; None if it is fast."""
        precision, reason = fastest_precision(self.device)
        return None if precision == "bf16-mixed" else reason

    @cached_property
    def missing(self) -> dict[str, str]:
        """The projects that cannot be measured, each with the reason."""
        reasons = {project: peers.missing(project, self.peer_dir) for project in peers.PROJECTS}
        if reasons["litgpt"] is not None and self.litgpt_python is not None:
            with self.worker("litgpt") as worker:
                reasons["litgpt"] = worker.ask("missing", project="litgpt", peer_dir=self.peer_dir)
        return {project: reason for project, reason in reasons.items() if reason is not None}

    def spec(self, project: str, n_layer: int, bf16: bool = False, **options: object) -> Spec:
        """The description of a model of ``project`` with this run's settings."""
        return Spec(
            project=project,
            n_layer=n_layer,
            workload=self.workload,
            device=self.device,
            bf16=bf16,
            peer_dir=self.peer_dir,
            options=options,
        )

    def worker(self, project: str) -> RemoteWorker:
        """A new process that can build ``project``."""
        elsewhere = project == "litgpt" and peers.missing(project, self.peer_dir) is not None
        return RemoteWorker(self.litgpt_python if elsewhere else None, torch.get_num_threads())

    def step_peak(self, spec: Spec) -> int:
        """Peak memory in bytes of building a model and taking its first steps, in a fresh process."""
        with self.worker(spec.project) as worker:
            return int(worker.ask("step_memory", spec=asdict(spec)))

    @contextmanager
    def steppers(self, specs: dict[str, Spec]) -> Iterator[dict[str, Callable[[], float]]]:
        """For each of ``specs``, a function that times one training step; the models exist until the context ends."""
        with ExitStack() as stack:
            yield {name: self._stepper(spec, stack) for name, spec in specs.items()}
        gc.collect()

    def _stepper(self, spec: Spec, stack: ExitStack) -> Callable[[], float]:
        if peers.missing(spec.project, self.peer_dir) is None:
            return peers.build(spec).timed_step
        worker = stack.enter_context(self.worker(spec.project))
        worker.ask("build", spec=asdict(spec))

        def step() -> float:
            return float(worker.ask("step"))

        return step

    def step_times(self, n_layer: int, bf16: bool) -> dict[str, list[float]]:
        """Seconds per training step of every available project, and the product's FLOP/s, by round.

        With ``bf16``, steps run under autocast; nanoGPT is also measured as published, in fp32.
        """
        if (n_layer, bf16) not in self._step_times:
            names = [name for name in peers.PROJECTS if name not in self.missing]
            specs = {name: self.spec(name, n_layer, bf16) for name in names}
            if bf16 and "nanoGPT" in specs:
                specs["nanoGPT fp32"] = self.spec("nanoGPT", n_layer)
            with self.steppers(specs) as steps:
                self._step_times[n_layer, bf16] = interleaved({**steps, PRODUCT: self._product(bf16)}, self.rounds)
        return self._step_times[n_layer, bf16]

    def _product(self, bf16: bool) -> Callable[[], float]:
        dtype = torch.bfloat16 if bf16 else torch.float32
        return lambda: machine.product_flops(self.torch_device, dtype, 1)
