"""The shipped coordinate check, at a tiny size, as it is typed."""

from pathlib import Path

import yaml

from tests.processes import must_run, tiny_config, tiny_corpus, write_config

STUDY = Path(__file__).parents[2] / "configs/studies/mup.yaml"
WIDTHS = (8, 16, 32)


def test_the_coordinate_check_runs_and_reports_slopes(tmp_path: Path) -> None:
    config = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=4, val_check_interval=2)
    del config["name"], config["seed_everything"], config["diagnostics"]
    write_config(tmp_path / "tiny.yaml", config)
    study = yaml.safe_load(STUDY.read_text())
    variants = {}
    for width in WIDTHS:
        sizes = {"model.init_args.dim": width, "model.init_args.n_head": width // 8}
        variants[f"standard {width}"] = sizes
        variants[f"μP {width}"] = {**sizes, "model.init_args.optimization.mup": {"base_dim": 8}}
    study["presets"] = {"tiny": {"base": ["tiny.yaml"], "seeds": [0], "variants": variants}}
    write_config(tmp_path / "mup.yaml", study)
    call = ("study", "--config", "mup.yaml", "--preset", "tiny", "--folder", "out", "--jobs", "2")
    must_run(*call, cwd=tmp_path, timeout=900)
    report = (tmp_path / "out/report.md").read_text()
    assert "| parametrisation, layer | width 8 | width 16 | width 32 | slope | slope before training |" in report
    for row in ("standard, embedding", "standard, layer 1", "μP, base 8, layer 1"):
        assert f"| {row} |" in report
    assert (tmp_path / "out/plots/coordinates_rms.png").is_file()
    assert (tmp_path / "out/plots/coordinates_logit_rms.svg").is_file()
