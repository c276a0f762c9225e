"""A study's file is read as it says, and refused, before anything runs, where it says something wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.report import check_report
from lightning_gpt.studies.spec.cells import merged, short_names, value_at, with_keys
from lightning_gpt.studies.spec.one_file import write_study
from lightning_gpt.studies.spec.study_file import read_study
from tests.studies.helpers import LAYERS, study

STUDIES = sorted((Path(__file__).parents[2] / "configs/studies").glob("*.yaml"))
VERDICTS = "lightning_gpt.studies.verdicts"

TUNE = {"key": "model.init_args.optimization.lr", "values": [1e-3, 2e-3], "budget": 2}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"gird": {}}, "unknown key 'gird'; did you mean grid"),
    "no name": ({"name": None}, "name is None"),
    "empty axis": ({"grid": {LAYERS: []}}, f"grid: {LAYERS} is an empty axis"),
    "axis of one value": ({"grid": {LAYERS: 4}}, f"{LAYERS} is 4; it must be a list"),
    "value twice": ({"grid": {LAYERS: [1, 1]}}, "holds a value twice"),
    "mapping on an axis": ({"grid": {LAYERS: [{"a": 1}]}}, "use variants for anything else"),
    "seeds on an axis": ({"grid": {"seed_everything": [1]}}, "list the seeds under seeds"),
    "no seeds": ({"seeds": []}, "seeds is empty"),
    "seed of words": ({"seeds": ["a"]}, "must be a whole number"),
    "seed beyond 32 bits": ({"seeds": [2**32]}, "each must be a whole number from 0 to 4,294,967,295"),
    "number as a key of the config": (
        {"config": {"trainer": {1: 2}}},
        r"config.trainer has the key 1; its keys must be",
    ),
    "layer of three figures": ({"measure": ["layers/token_cosine/layer_012"]}, "unknown measure"),
    "equal with a growing batch": (
        {"equal": "tokens", "variants": {"a": {}, "b": {"model.init_args.optimization.batch_warmup": 0.5}}},
        "equal: tokens and optimization.batch_warmup cannot be combined",
    ),
    "trials with a growing batch": (
        {"tune": TUNE, "variants": {"a": {}, "b": {"model.init_args.optimization.batch_warmup": 0.5}}},
        "tune and optimization.batch_warmup cannot be combined",
    ),
    "trials without validation": (
        {"tune": TUNE, "variants": {"a": {}, "b": {"trainer.limit_val_batches": 0}}},
        "trainer.limit_val_batches 0 leaves them out",
    ),
    "unknown measure": ({"measure": ["val/los"]}, r"unknown measure 'val/los' \(did you mean val/loss\?\); known are"),
    "missing base": ({"base": ["nope.yaml"]}, "nope.yaml' cannot be read: No such file"),
    "variant that is no mapping": ({"variants": {"a": 3}}, "variant a is 3"),
    "variant of an axis": ({"variants": {"a": {LAYERS: 3}}}, "variant a sets .*n_layer, which is an axis"),
    "reference along no axis": ({"reference": {"name": "x", "axis": "dim", "values": {}}}, "axis is 'dim'; the axes"),
    "unknown preset key": ({"presets": {"cpu": {"gird": {}}}}, "preset cpu: unknown key 'gird'"),
    "section with two names": ({"report": [{"a": {}, "b": {}}]}, "a section is a name"),
    "reference at a word": (
        {"reference": {"name": "x", "axis": LAYERS, "values": {"val/loss": {1: 3.0, "two": 2.0}}}},
        "reference: values holds 'two'; the values of .*n_layer are numbers",
    ),
    "reference of what is not measured": (
        {"reference": {"name": "x", "axis": LAYERS, "values": {"test/loss": {1: 3.0}}}},
        "reference: values has test/loss, which measure does not list",
    ),
    "axis of the variants' name": (
        {"grid": {"variant": [1, 2]}},
        "grid: variant is the name of the axis that variants",
    ),
    "axis that equal sets": (
        {"equal": "tokens", "grid": {"trainer.max_steps": [100, 200]}},
        "equal: tokens sets trainer.max_steps, so it cannot be an axis, tuned, or differ in variants",
    ),
    "option that equal sets": (
        {"equal": "flops", "tune": {**TUNE, "key": "trainer.val_check_interval"}},
        "equal: flops sets trainer.val_check_interval, so it cannot be an axis",
    ),
    "trials without a validation": (
        {"tune": TUNE, "config": {"data": {"global_batch": 8}}},
        "tune needs data.batch_size, not data.global_batch: a trial is validated at its last step",
    ),
    "test without a checkpoint": (
        {"measure": ["test/loss"], "variants": {"a": {"trainer.enable_checkpointing": False}}},
        "test/loss is measured from a checkpoint, but trainer.enable_checkpointing is false",
    ),
}
WRONG_SECTIONS: dict[str, tuple[Any, str]] = {
    "unknown section": ("tabel", "unknown section 'tabel'; known are table"),
    "section of an unknown module": ("nowhere.Section", "is not a known section; to use it, add --trust nowhere"),
    "section of no module": (
        f"{VERDICTS}.nowhere.Section",
        f"section '{VERDICTS}.nowhere.Section' cannot be imported: No module named '{VERDICTS}.nowhere'",
    ),
    "section of no class": (f"{VERDICTS}.oversmoothing.Acounts", "cannot be imported: .* has no attribute 'Acounts'"),
    "class that is no section": (f"{VERDICTS}.oversmoothing.CellResult", "is not a section: it must be a dataclass"),
    "option of an imported section": (
        {f"{VERDICTS}.oversmoothing.Accounts": {"a": "b"}},
        "Accounts has no option 'a'; it has none",
    ),
    "unknown option": ({"trend": {"x": "n_layer", "z": "a"}}, "trend has no option 'z'; it has x, y"),
    "missing option": ({"trend": {"x": "n_layer"}}, "trend needs the option 'y'"),
    "unknown measure": ({"trend": {"x": "n_layer", "y": "val/los"}}, "unknown measure 'val/los'"),
    "trend along no axis": ({"trend": {"x": "dim", "y": "val/loss"}}, "'dim' is not a numeric axis"),
    "gain along no axis": ({"gain": {"x": "dim", "y": "val/loss"}}, "report: gain: 'dim' is not a numeric axis"),
    "gain beside nothing": (
        {"gain": {"x": "n_layer", "y": "val/loss", "beside": "GPT"}},
        "gain: beside is 'GPT'; it must be one of the settings",
    ),
    "unknown quantity": (
        {"fit": {"x": "n_layer * depth", "y": "val/loss"}},
        "'depth' is neither a measure, nor an axis",
    ),
    "unknown measure of a fit": (
        {"fit": {"x": "n_layer", "y": "cost/step_second"}},
        r"unknown measure 'cost/step_second' \(did you mean cost/step_seconds\?\)",
    ),
    "unknown kind": ({"fit": {"x": "n_layer", "y": "val/loss", "kind": "cubic"}}, "must be linear, power, saturating"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_study_is_refused(name: str, tmp_path: Path) -> None:
    over, message = WRONG[name]
    with pytest.raises(CallError, match=message):
        study(tmp_path, preset="cpu" if "presets" in over else None, **over)


@pytest.mark.parametrize("name", WRONG_SECTIONS)
def test_wrong_section_is_refused(name: str, tmp_path: Path) -> None:
    section, message = WRONG_SECTIONS[name]
    with pytest.raises(CallError, match=message):
        check_report(study(tmp_path, report=[section]))


def test_cells_are_the_product_with_variants_and_seeds(tmp_path: Path) -> None:
    made = study(tmp_path, variants={"a": {"model.init_args.dropout": 0.1}, "b": {}})
    assert len(made.cells) == 2 * 3 * 2
    cell = made.cells[3]
    assert cell.name == "variant=a,n_layer=2,seed=1"
    assert cell.config["model"]["init_args"] == {"dim": 32, "block_size": 16, "n_layer": 2, "dropout": 0.1}
    assert cell.config["seed_everything"] == 1
    assert [each.number for each in made.cells] == list(range(12))
    assert len({each.folder for each in made.cells}) == 12


def test_digest_changes_with_the_config_and_with_nothing_else(tmp_path: Path) -> None:
    first, again = study(tmp_path), study(tmp_path, question="Another?", report=[])
    assert [cell.folder for cell in first.cells] == [cell.folder for cell in again.cells]
    other = study(tmp_path, config={"trainer": {"max_steps": 3}})
    assert not {cell.folder for cell in first.cells} & {cell.folder for cell in other.cells}


def test_preset_lies_over_the_study(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {init_args: {dim: 8, n_head: 2}}\n")
    preset = {"base": ["base.yaml"], "config": {"model": {"init_args": {"block_size": 8}}}, "seeds": [5]}
    preset["grid"] = {LAYERS: [3], "model.init_args.bias": [True, False]}
    made = study(tmp_path, preset="cpu", presets={"cpu": preset, "paper": None})
    options = made.cells[0].config["model"]["init_args"]
    assert options == {"dim": 32, "n_head": 2, "block_size": 8, "n_layer": 3, "bias": True}
    assert (made.seeds, made.title) == ([5], "small-cpu")
    with pytest.raises(CallError, match=r"choose one with --preset \(cpu, paper\)"):
        study(tmp_path, presets={"cpu": preset, "paper": None})
    with pytest.raises(CallError, match="no preset 'gpu'; it has cpu, paper"):
        study(tmp_path, preset="gpu", presets={"cpu": preset, "paper": None})


def test_a_preset_can_do_without_what_the_study_has(tmp_path: Path) -> None:
    whole = {"tune": TUNE, "alone": {"steps": 3}, "equal": "flops", "config": {"trainer": {"max_steps": 3}}}
    presets = {"same": {}, "less": {"tune": None, "alone": None, "equal": None}}
    same, less = (study(tmp_path, preset=name, presets=presets, **whole) for name in presets)
    assert (same.tune is not None, same.alone, same.equal) == (True, 3, "flops")
    assert (less.tune, less.alone, less.equal) == (None, None, "")


def test_keys() -> None:
    assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}
    assert with_keys({"a": {"b": 1}}, {"a.c.d": 2}) == {"a": {"b": 1, "c": {"d": 2}}}
    assert value_at({"a": {"b": 0}}, "a.b") == 0
    assert value_at({"a": 1}, "a.b") is None
    names = short_names(["x.a.lr", "x.b.lr", "n_layer", "q.dim"])
    assert names == {"x.a.lr": "a.lr", "x.b.lr": "b.lr", "n_layer": "n_layer", "q.dim": "dim"}
    assert short_names(["n_layer", "model.n_layer"]) == {"n_layer": "n_layer", "model.n_layer": "model.n_layer"}


PRESETS = [(file, preset) for file in STUDIES for preset in yaml.safe_load(file.read_text())["presets"]]


@pytest.mark.parametrize(("file", "preset"), PRESETS, ids=lambda each: getattr(each, "stem", each))
def test_shipped_studies_are_sound(file: Path, preset: str) -> None:
    from lightning_gpt.studies.report.diagnostics import diagnostic

    made = read_study(file, preset)
    assert made.name == file.stem
    assert made.question
    check_report(made)
    for name, options in made.report:
        if name == "layers":
            diagnostic(options["diagnostic"])


@pytest.mark.parametrize(("file", "preset"), PRESETS, ids=lambda each: getattr(each, "stem", each))
def test_a_study_in_one_file_runs_the_same_cells(file: Path, preset: str, tmp_path: Path) -> None:
    made = read_study(file, preset)
    write_study(made, tmp_path)
    again = read_study(tmp_path / "study.yaml", None)
    assert again.title == made.title
    assert again.provisional.cells == made.provisional.cells
    assert replace(again, name=made.name, preset=preset) == made


def test_a_study_file_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    made = study(tmp_path)  # its file is where the study would write its own
    before = (tmp_path / "study.yaml").read_text()
    write_study(made, tmp_path)
    assert (tmp_path / "study.yaml").read_text() == before
    (tmp_path / "study.yaml").unlink()
    write_study(made, tmp_path)
    write_study(replace(made, question="And width?"), tmp_path)
    assert read_study(tmp_path / "study.yaml", None).question == "And width?"


def test_the_promised_studies_are_shipped() -> None:
    names = {file.stem for file in STUDIES}
    assert names >= {"depth", "width_heads", "oversmoothing", "gradients", "initialisation"}


def test_every_shipped_study_has_a_small_and_a_large_preset() -> None:
    assert {(file, preset) for file in STUDIES for preset in ("cpu", "paper")} <= set(PRESETS)


@pytest.mark.parametrize(("preset", "first"), [("cpu_flops", 8), ("plain_flops", 12), ("modern_flops", 12)])
def test_depths_of_equal_flops_take_steps_for_them(preset: str, first: int) -> None:
    made = read_study(next(file for file in STUDIES if file.stem == "depth"), preset)
    plain = read_study(next(file for file in STUDIES if file.stem == "depth"), preset.removesuffix("_flops"))
    depths = made.grid[LAYERS]
    assert (depths[0], sorted(depths)) == (first, plain.grid[LAYERS])
    done = made.with_work([{"tokens": 1.0, "flops": 1.0 + depth} for depth in depths]).provisional
    steps = {cell.settings[LAYERS]: cell.config["trainer"]["max_steps"] for cell in done.cells}
    assert steps[first] == plain.provisional.cells[0].config["trainer"]["max_steps"]
    assert {depth: number * (1 + depth) for depth, number in steps.items()} == pytest.approx(
        dict.fromkeys(depths, steps[first] * (1 + first)), rel=0.02
    )


def test_depth_study_holds_the_papers_figures() -> None:
    reference = read_study(next(file for file in STUDIES if file.stem == "depth"), "cpu").reference
    assert reference is not None
    assert reference.values["val/perplexity"] == {2: 38.5, 4: 29.4, 8: 21.7, 12: 18.9}
    assert reference.values["cost/step_seconds"] == pytest.approx({2: 0.0012, 4: 0.0023, 8: 0.0048, 12: 0.0075})
