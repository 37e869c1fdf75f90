"""The files of a release: the source archive is complete, the wheel has all that it needs and works when installed."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from modernbert import ModernBert

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2]))"
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an archive without network, like `python -m build --no-isolation`."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT, folder / "checkout", ignore=IGNORED)
    with tarfile.open(build("sdist", folder / "checkout", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"modernbert-{version('modernbert')}"


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """A wheel that is built from the source archive."""
    return build("wheel", source, source.parent)


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The Python of a read-only environment that has the wheel, and the other libraries from this one."""
    folder = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    installed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "installed.pth").write_text("\n".join(installed))
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    return folder / "bin" / "python"


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_source_archive_has_every_file(source: Path) -> None:
    made = {name for name in files_of(source) if name.startswith("modernbert.egg-info/")}
    expected = files_of(source.parent / "checkout") - {name for name in made}
    assert files_of(source) - made - {"PKG-INFO", "setup.cfg"} == expected - made


def test_the_wheel_has_the_package_alone(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == {f"modernbert/{name}" for name in files_of(source / "modernbert")}
    assert "modernbert/py.typed" in found


def test_mypy_finds_the_types_of_the_installed_package(python: Path, tmp_path: Path) -> None:
    program = Path(shutil.copy(ROOT / "tests" / "user_program.py", tmp_path))
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
        "--cache-dir",
        tmp_path,
        program,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Success: no issues found in 1 source file"), done.stdout + done.stderr
    program.write_text(program.read_text().replace("bert.rerank(query, documents", "bert.rerank(documents, query"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert 'Argument 1 to "rerank" of "ModernBert" has incompatible type' in done.stdout


def test_the_installed_package_works_alone(python: Path, small_bert: ModernBert, tmp_path: Path) -> None:
    """Without a compiler, a home folder, a network or write access to itself."""
    small_bert.save(tmp_path / "model")
    # Root may write anywhere, unless it gives up its capabilities.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 and shutil.which("setpriv") else []
    command = [*map(shutil.which, drop[:1]), *drop[1:], python, Path(__file__).with_name("user_program.py"), tmp_path]
    alone = {"PATH": "/nonexistent", "HOME": "/nonexistent", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a city (1, 1)\nrefused: ") or done.stdout.startswith("a land (1, 1)\nrefused: ")
    assert done.stdout.rstrip().endswith(version("modernbert"))
    if sys.platform == "linux":
        assert "engine torch, since cpu needs a C++ compiler, found none (apt install g++)" in done.stderr
    assert not Path("/nonexistent").exists()
