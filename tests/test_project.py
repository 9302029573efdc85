"""The project as a whole: contracts, notices, packaging, README, configs, what lies where."""

import dataclasses
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlab
from experiments.common import describe_config, run_config
from experiments.common.documentation import field_documentation
from experiments.common.program import config_class_of

CHECKOUT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {
    *(".ci", ".gitignore", ".gitattributes", ".github", ".dockerignore", ".editorconfig"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "NOTICE"),
    *("README.md", "SECURITY.md", "configs", "docs", "experiments", "jaxlab", "mkdocs.yml"),
    *("pyproject.toml", "setup.py", "tests", "tpu_scripts"),
}
CONFIGS = sorted(str(p.relative_to(CHECKOUT)) for p in CHECKOUT.glob("configs/*/[!_]*.py"))


def _project_files() -> list[Path]:
    """The files that belong to the project: those that git tracks, and those that it would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the project's files are unknown")
    paths = [CHECKOUT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def _texts() -> dict[str, str]:
    """Path -> text of every file that is text."""
    texts = {}
    for path in _project_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            texts[str(path.relative_to(CHECKOUT))] = data.decode("utf-8", errors="replace")
    return texts


def _assets() -> list[str]:
    paths = (path.relative_to(CHECKOUT) for path in _project_files())
    return sorted(str(path) for path in paths if "assets" in path.parts)


def _bash_blocks() -> list[str]:
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    return re.findall(r"^```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)


def test_imports_only_point_down():
    script = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [script, "--no-cache"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_top_level_holds_only_what_belongs_there():
    names = {path.relative_to(CHECKOUT).parts[0] for path in _project_files()}
    assert names <= TOP_LEVEL, names - TOP_LEVEL
    required = {"README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", "setup.py"}
    assert required <= names


def test_every_asset_is_named_in_the_notice():
    notice = (CHECKOUT / "NOTICE").read_text("utf-8")
    beside = re.compile(r"README\.md|LICENSE-.*|.*\.(log|jsonl)")
    assets = [path for path in _assets() if not beside.fullmatch(Path(path).name)]
    assert "jaxlab/text/assets/vocab.txt" in assets
    named = set(notice.splitlines())
    missing = [
        path for path in assets if path not in named and f"{Path(path).parent}/" not in named
    ]
    assert not missing, f"give these files a paragraph in NOTICE: {missing}"


def test_the_notice_names_only_files_that_exist():
    notice = (CHECKOUT / "NOTICE").read_text("utf-8")
    named = re.findall(r"\b(?:jaxlab|experiments)/[\w/.-]*[\w/]", notice)
    assert named
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


def test_every_asset_travels_in_the_wheel_and_the_source_archive(monkeypatch, tmp_path):
    from setuptools import Distribution

    monkeypatch.chdir(CHECKOUT)
    keywords = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: keywords.update(given))
    runpy.run_path("setup.py")
    names = ("packages", "package_data", "include_package_data")
    dist = Distribution({"script_name": "setup.py", **{name: keywords[name] for name in names}})
    build = dist.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    wheel = {str(Path(output).relative_to(tmp_path)) for output in build.get_outputs(False)}
    inside = [path for path in _assets() if path.startswith("jaxlab/")]
    assert set(inside) <= wheel, set(inside) - wheel
    assert "jaxlab/py.typed" in wheel
    assert {path.split("/")[0] for path in wheel} == {"jaxlab"}
    manifest = (CHECKOUT / "MANIFEST.in").read_text().splitlines()
    assert {f"graft {folder}" for folder in ("jaxlab", "experiments", "tests")} <= set(manifest)


def test_the_version_is_the_same_everywhere():
    version = jaxlab.__version__
    assert f"\nversion: {version}\n" in (CHECKOUT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (CHECKOUT / "CHANGELOG.md").read_text()


def test_the_readme_has_one_block_to_run_and_one_to_test():
    blocks = _bash_blocks()
    assert len(blocks) == 2, f"README.md has {len(blocks)} bash blocks; wanted exactly 2"
    for block in blocks:
        assert "python3.11 -m venv .venv" in block and ". .venv/bin/activate" in block
    assert (
        "python -m experiments.chinese_clip.train --config=configs/chinese_clip/tiny.py"
        in (blocks[0])
    )
    assert re.search(r'^pip install .*-e "\.\[test\]"$', blocks[1], re.MULTILINE)
    assert blocks[1].splitlines()[-1] == "pytest -n 2"


def test_every_system_is_in_the_readme():
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    for system in jaxlab.SYSTEMS:
        assert system in readme


def test_no_file_names_a_machine_or_a_registry():
    hosts = ["pypi" + ".org", "python" + "hosted", "npm" + "js", "debian" + ".org"]
    folders = ["/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/", "/op" + "t/"]
    pattern = re.compile("|".join(re.escape(word) for word in hosts + folders))
    found = {path: pattern.findall(text) for path, text in _texts().items()}
    assert {path: words for path, words in found.items() if words} == {}


def test_only_the_check_script_knows_the_folder_beside_the_checkout():
    name = "sha" + "red/data"
    assert {path for path, text in _texts().items() if name in text} <= {".ci/run"}


def test_no_file_is_too_large():
    limit = 13 * 2**20
    sizes = {str(path): path.stat().st_size for path in _project_files()}
    assert {path: size for path, size in sizes.items() if size > limit} == {}


def _config_and_class(path: str):
    """The config of a file and the dataclass of the experiment that it is for."""
    members = runpy.run_path(str(CHECKOUT / path))
    system, verb = Path(path).parent.name, members.get("VERB", "train")
    experiment = importlib.import_module(f"experiments.{system}.{verb}")
    return members["get_config"](), config_class_of(experiment.main)


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_builds_and_documents_every_field(path):
    config, config_class = _config_and_class(path)
    resolved = run_config(config, config_class)
    assert "config." in describe_config(resolved)
    undocumented = _undocumented(resolved, "config")
    assert undocumented == [], f"add these to their classes' Attributes: {undocumented}"


def _undocumented(config, path: str) -> list[str]:
    texts = field_documentation(type(config))
    missing = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not texts.get(field.name):
            missing.append(f"{path}.{field.name} ({type(config).__name__})")
        if dataclasses.is_dataclass(value):
            missing.extend(_undocumented(value, f"{path}.{field.name}"))
    return missing


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.endswith("/smoke.py")])
def test_print_config_shows_the_config_and_runs_nothing(path, tmp_path):
    verb = runpy.run_path(str(CHECKOUT / path)).get("VERB", "train")
    command = [sys.executable, "-m", f"experiments.{Path(path).parent.name}.{verb}"]
    result = subprocess.run(
        [*command, f"--config={path}", "--print_config", f"--workdir={tmp_path / 'run'}"],
        cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("config: ")
    assert not (tmp_path / "run").exists()
