"""The wheel is complete: code, configs and command, used from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing of the checkout."""
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = wheels.glob("kdistill-*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _run(installed: Path, folder: Path, *argv: str) -> str:
    code = "import sys; from kdistill.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_config(installed: Path) -> None:
    """kdistill/configs in the wheel is the checkout's configs/, file by file."""
    ours = {
        file.relative_to(ROOT / "configs"): file.read_text() for file in (ROOT / "configs").rglob("*.yaml")
    }
    packed = installed / "kdistill" / "configs"
    assert {file.relative_to(packed): file.read_text() for file in packed.rglob("*.yaml")} == ours


def test_the_wheel_holds_the_templates_of_pages(installed: Path) -> None:
    """What is no Python is packed, too."""
    own = ROOT / "kdistill" / "reporting" / "templates"
    packed = installed / "kdistill" / "reporting" / "templates"
    assert [file.name for file in sorted(packed.iterdir())] == ["report.css", "report.html.j2"]
    assert all(file.read_text() == (own / file.name).read_text() for file in packed.iterdir())


def test_the_wheel_holds_no_tests(installed: Path) -> None:
    """One package, its metadata, and the command."""
    names = {entry.name.partition("-")[0] for entry in installed.iterdir()}
    assert names == {"kdistill"}
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "kdistill = kdistill.cli:main" in entry_points.read_text()


def test_the_installed_command_composes_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """`kdistill distill --cfg job` reads the wheel's own configs, wherever it is started."""
    assert "name: resnet20" in _run(installed, tmp_path, "distill", "--cfg", "job", "-p", "teacher")
    sources = _run(installed, tmp_path, "distill", "--info", "searchpath")
    assert str(installed / "kdistill" / "configs") in sources
    assert str(ROOT / "configs") not in sources
    assert "Hinton" in _run(installed, tmp_path, "list", "losses")
    assert list(tmp_path.iterdir()) == []
