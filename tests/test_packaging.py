"""The files of a release: the source archive is complete, the wheel has all that it needs and works when installed."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from modernbert import ModernBert, __version__

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
    return folder / f"modernbert-{__version__}"


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


@pytest.fixture
def alone(python: Path, small_bert: ModernBert, tmp_path: Path) -> list[str | Path]:
    """The start of a command without the rights of root, and a model in the folder `model`."""
    small_bert.save(tmp_path / "model")
    setpriv = shutil.which("setpriv") if os.getuid() == 0 else None
    return [*([setpriv, "--bounding-set=-all", "--inh-caps=-all"] if setpriv else []), python]


ALONE = {"PATH": "/nonexistent", "HOME": "/nonexistent", "https_proxy": "http://127.0.0.1:9"}
NO_COMPILER = "engine torch, since cpu needs a C++ compiler, found none (apt install g++)\n"
has_kernels = pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="no CPU kernels")


def run_alone(alone: list[str | Path], folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program without a compiler, a home folder, a network and write access to the installed package."""
    done = subprocess.run([*alone, *words], cwd=folder, env=ALONE, capture_output=True, text=True)
    assert done.returncode == 0 and not Path("/nonexistent").exists(), done.stderr
    return done


def test_a_program_works_alone(alone: list[str | Path], tmp_path: Path) -> None:
    done = run_alone(alone, tmp_path, Path(__file__).with_name("user_program.py"), tmp_path)
    assert "(1, 1)\nrefused: " in done.stdout and "20,002 tokens" in done.stdout
    assert done.stdout.rstrip().endswith(__version__)


@has_kernels
@pytest.mark.parametrize(
    ("words", "said"), [(["embed", "model", "a city"], "["), (["fill-mask", "model", "a [MASK]"], "a ")]
)
def test_commands_work_alone(alone: list[str | Path], tmp_path: Path, words: list[str], said: str) -> None:
    done = run_alone(alone, tmp_path, "-m", "modernbert", *words)
    assert done.stdout.startswith(said) and done.stderr.count(NO_COMPILER) == 1


@has_kernels
def test_the_server_works_alone(alone: list[str | Path], tmp_path: Path) -> None:
    command = [*alone, "-m", "modernbert", "serve", "model", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=ALONE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = [next(server.stderr) for _ in range(3)]
            address = said[-1].split(": ")[1].split(",")[0]
            body = json.dumps({"inputs": ["a city"]}).encode()
            request = Request(f"{address}/embed", body, {"content-type": "application/json"})
            with urlopen(request, timeout=60) as answer:
                assert len(json.load(answer)[0]) == 64
        finally:
            server.terminate()
    assert said.count(NO_COMPILER) == 1
