"""``lightning-gpt study``: runs a grid of training runs and reports their results."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

from lightning_gpt.cluster import connected
from lightning_gpt.commands.call import parse_function_call
from lightning_gpt.errors import CallError, Stopped, WorkError
from lightning_gpt.options import Index, Processes
from lightning_gpt.stopping import end_with_parent, unheard_by_children
from lightning_gpt.studies.report.report import check_report, write_report
from lightning_gpt.studies.report.results import StudyResults, collect, write_results
from lightning_gpt.studies.run.display import Display
from lightning_gpt.studies.run.on_cluster import run_on_cluster
from lightning_gpt.studies.run.result import cell_folder, read_result, read_results
from lightning_gpt.studies.run.runner import Runner, share_of_machine
from lightning_gpt.studies.run.slurm import array_script
from lightning_gpt.studies.run.starter import FreshStarter, may_fork, starter
from lightning_gpt.studies.run.tuning import costs_folder, rungs, tuning_folder, use_trials
from lightning_gpt.studies.spec.cells import Cell, setting_id
from lightning_gpt.studies.spec.equal import PARAMETERS
from lightning_gpt.studies.spec.one_file import write_study
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.studies.spec.study_file import read_study
from lightning_gpt.studies.spec.vocabulary import SharedVocabularies
from lightning_gpt.trust import trust, trusted_modules, trusted_options

_Result = TypeVar("_Result")
_FLAGS = ("--slurm", "--report_only", "--tuning")


def study(
    config: str,
    preset: str | None = None,
    folder: str | None = None,
    jobs: Processes = 1,
    cell: Index | None = None,
    slurm: bool = False,
    report_only: bool = False,
    ray: str | None = None,
    tuning: bool = False,
) -> None:
    """Run a study: each cell of its grid as a process of its own, then write tables, plots and a report.

    Rerun the same command to resume a study that was stopped or killed: finished cells are skipped and unfinished ones
    resumed. A cell that fails is reported while the others continue; the exit status is then 1.

    Args:
        config: The study's YAML file, such as configs/studies/depth.yaml.
        preset: The preset of that file to run, such as cpu or paper.
        folder: Folder for the cells, results.csv, results.json, plots and report; studies/NAME-PRESET when omitted.
        jobs: Cells to run at a time; they share the cores and GPUs.
        cell: Run only this cell, by its number from 0, and write no report; jobs of a SLURM array use this.
        slurm: Print a SLURM array script with one job per cell, and run nothing.
        report_only: Write results and report from the finished cells, and run nothing.
        ray: Run the cells on the Ray cluster at this address: HOST:PORT of its head, or auto. Its machines must share
            the study's folder and the working folder; jobs is then the number of cells at a time on each machine.
        tuning: With --cell or --slurm: run the trials of the study's first stage, which chooses an option for each
            setting, instead of its cells.
    """
    read = read_study(Path(config), preset)
    place = Path(folder) if folder is not None else Path("studies") / read.title
    if sum((cell is not None, slurm, report_only, ray is not None)) > 1:
        raise CallError("--cell, --slurm, --report_only and --ray cannot be combined")
    if read.equal:
        read = read.with_work(_elsewhere(_step_work, read.provisional.cells[:: len(read.seeds)], read.equal))
    if tuning and (read.tune is None or (cell is None and not slurm)):
        raise CallError("--tuning is for --cell or --slurm, of a study that has a first stage (tune)")
    if tuning and read.tune is not None and len(read.tune.rungs) > 1:
        raise CallError("--tuning cannot be combined with tune: halving, whose later trials depend on earlier ones")
    chosen = read.trials if tuning else read.provisional
    if cell is not None and not 0 <= cell < len(chosen.cells):
        raise CallError(f"cell is {cell}; this study has {len(chosen.cells)} (allowed: 0 to {len(chosen.cells) - 1})")
    if report_only:
        check_report(read)
        _report(collect(read, place), place)
        return
    share = share_of_machine(0, jobs)  # refuses a wrong OMP_NUM_THREADS before anything is trained
    shared = SharedVocabularies(place)
    if cell is not None and not tuning:
        chosen = _chosen(read, place)
    cells = chosen.cells if cell is None else [chosen.cells[cell]]
    trials = read.trials.cells if read.tune is not None and cell is None and not tuning else []
    sizes = _elsewhere(_prepare, read, [*trials, *cells], shared)
    if slurm:
        place.mkdir(parents=True, exist_ok=True)  # SLURM opens the jobs' logs in it but does not create it
        print(array_script(chosen, Path(config), place, trusted_options(), tuning=tuning), end="")
        return
    # the machines of a cluster have no process that could be forked
    with starter(share) if ray is None else FreshStarter() as starts:
        at = tuning_folder(place) if tuning else place
        runner = Runner(chosen, at, jobs, shared.run_config, starts, trusted_options())
        work = {each.number: size for each, size in zip(cells, sizes[len(trials) :], strict=True)}
        if cell is not None:
            _run_one(runner, cells[0], Display(chosen.measure, work))
            return
        if read.tune is not None:
            trial_work = {setting_id(each.settings): size for each, size in zip(trials, sizes, strict=False)}
            for rung, _ in rungs(read, place):
                rung_work = {each.number: trial_work[setting_id(each.settings)] for each in rung.cells}
                _run_trials(replace(runner, study=rung, folder=tuning_folder(place)), rung_work, ray)
            runner = replace(runner, study=_chosen(read, place))
        _run_all(runner, read, Display(read.measure, work), ray)


def _chosen(read: Study, place: Path) -> Study:
    """The study with what its first stage in ``place`` has chosen; trials that are cells of it are used as such."""
    study = collect(read, place).study
    if study.tune is not None:
        use_trials(study, place)
    return study


def _run_trials(runner: Runner, work: dict[int, int], ray: str | None) -> None:
    """Run a rung of the first stage; a trial that fails is none to choose, and stops nothing."""
    try:
        _run(runner, Display(runner.study.measure, work), ray)
    finally:
        results = StudyResults(runner.study, read_results(runner.study, runner.folder))
        if results.finished:
            write_results(results, runner.folder)


def _run(runner: Runner, display: Display, ray: str | None) -> None:
    if ray is None:
        runner.run(display)
        return
    with connected(ray) as cluster:
        run_on_cluster(runner, cluster, display)


def _run_one(runner: Runner, cell: Cell, display: Display) -> None:
    runner.run_one(cell, display)
    result = read_result(cell, cell_folder(runner.folder, cell))
    if result.status != "finished":
        raise WorkError(f"cell {cell.number}, {cell.name}, failed: {result.error}")


def _run_all(runner: Runner, read: Study, display: Display, ray: str | None) -> None:
    try:
        _run(runner, display, ray)
        if read.alone is not None and ray is None:  # the machines of a cluster are others' too
            with starter(share_of_machine(0, 1)) as starts:  # threads are those that were set before the imports
                costs = replace(
                    runner, study=runner.study.costs, folder=costs_folder(runner.folder), jobs=1, starter=starts
                )
                costs.run(Display(costs.study.measure, {}))
    finally:
        results = collect(read, runner.folder)
        if results.finished:
            _report(results, runner.folder)
    failed = [result.cell.name for result in results.results if result.status == "failed"]
    if failed:
        names = "; ".join(failed[:3]) + (" and others" if len(failed) > 3 else "")
        raise WorkError(
            f"{len(failed)} of {len(runner.study.cells)} cells failed ({names}); the report gives their errors"
        )
    if read.alone is not None and ray is None:
        timed = read_results(runner.study.costs, costs_folder(runner.folder))
        lacking = [result for result in timed if result.status == "failed"]
        if lacking:
            raise WorkError(
                f"the times alone of {len(lacking)} of {len(timed)} settings could not be measured; the first, "
                f"{lacking[0].cell.name}: {lacking[0].error}"
            )


def _elsewhere(work: Callable[..., _Result], *args: Any) -> _Result:
    """What ``work`` returns in a process of its own.

    It imports torch and Lightning, and the study's process should stay small while the cells train.
    """
    with unheard_by_children():
        pool = ProcessPoolExecutor(1, get_context("fork" if may_fork() else "spawn"), end_with_parent)
        done = pool.submit(work, *args, trusted_modules())
    with pool:
        try:
            return done.result()
        except BrokenProcessPool:
            raise WorkError("the process that checks the cells died (was it killed, or out of memory?)") from None
        except Stopped:
            for process in active_children():
                process.terminate()  # rather than wait until it has checked all
            raise


def _prepare(read: Study, cells: list[Cell], shared: SharedVocabularies, modules: list[str]) -> list[int]:
    """Check the report and the cells, and train the vocabularies that these share; returns each cell's parameters."""
    from lightning_gpt.commands.study_check import check_cells, train_vocabulary

    trust(modules)
    check_report(read)
    sizes = check_cells(cells)
    for place, config in shared.to_train(cells).items():
        train_vocabulary(config, place)
    return sizes


def _step_work(cells: list[Cell], equal: str, modules: list[str]) -> list[dict[str, float]]:
    """Tokens and FLOPs of a step of each cell, or the width with equal parameters."""
    from lightning_gpt.commands.study_check import equal_widths, step_work

    trust(modules)
    return equal_widths(cells) if equal == PARAMETERS else step_work(cells)


def _report(results: StudyResults, folder: Path) -> None:
    """Write the tables and the report, and print where they are."""
    if not results.finished:
        raise WorkError(f"no cell of {results.study.title} is finished in {folder}: nothing to report")
    write_results(results, folder)
    write_study(results.study, folder)
    print(write_report(results, folder))


def run(args: list[str]) -> None:
    """Parse ``args`` and run the study."""
    # a flag may be given without a value
    args = [
        f"{arg}=true" if arg in _FLAGS and after.startswith("-") else arg
        for arg, after in zip(args, [*args[1:], "--"], strict=False)
    ]
    study(**parse_function_call(study, "study", args))
