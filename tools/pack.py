"""What a cluster takes beside the wheel: the project for --py-files, its packages for --archives.

python tools/pack.py dist [--torch] [--torch-index URL] [--torch-from FOLDER …]

    dist/i2e_pipeline-VERSION.zip   both packages with their data; the one zip in that folder
    dist/environment.tar.gz         a Python environment with everything that they need of PyPI, and not themselves

The environment is a relocatable one of uv, which `make venv` uses already. venv-pack packs an environment that exists,
refuses editable installs, as ours is, and leaves the interpreter out as uv does; conda-pack brings the interpreter, and
wants conda's channels; pex gives one file, which every Python process would unpack or look up again.

pyspark stays out, since executors take the cluster's (SPARK_HOME). So does torch with its stack, unless --torch: from
PyPI that is CUDA's 7 GB, and a machine with a GPU has a torch that fits its driver. `--torch-from` names the folder in
which workers find it (that image's site-packages); it stands behind the packed packages on their path.
An environment is packed once and kept in the user's cache, named by what it is made of.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("i2e_pipeline", "wikidata")
EXTRAS = ("spark", "train")
CLUSTERS = ("pyspark",)
"""What the cluster brings."""
TORCH = ("torch", "torchvision", "triton")
_KEPT = 3
"""Packed environments in the cache."""
CONSTRAINTS = ROOT / "constraints.txt"


def project(dist: Path) -> Path:
    """The zip of both packages with their data; an older one is removed."""
    sys.path.insert(0, str(ROOT))
    from i2e_pipeline.core.version import __version__

    for old in dist.glob("*.zip"):
        old.unlink()
    target = dist / f"i2e_pipeline-{__version__}.zip"
    fresh = target.with_suffix(".tmp")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in PACKAGES:
            for path in sorted((ROOT / package).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    # Without times, equal sources give an equal zip, which workers then lay out once.
                    name = zipfile.ZipInfo(path.relative_to(ROOT).as_posix())
                    name.compress_type, name.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                    archive.writestr(name, path.read_bytes())
    fresh.replace(target)
    return target


def environment(dist: Path, torch: bool, index: str | None, torch_from: list[str]) -> Path:
    """The packed environment, from the cache where one of the same content is there."""
    left_out = (*CLUSTERS, *(() if torch else TORCH))
    made_of = (sys.version, CONSTRAINTS.read_text(), (ROOT / "setup.cfg").read_text(), left_out, index, torch_from)
    digest = hashlib.blake2b(repr(made_of).encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2e-pipeline" / "environments"
    kept = cache / f"{digest}.tar.gz"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            built = _install(Path(folder) / "environment", left_out, index, torch_from)
            packed = Path(folder) / "packed.tar.gz"
            with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
                for entry in sorted(built.iterdir()):
                    archive.add(entry, entry.name, filter=_useful)
            packed.replace(kept)
    os.utime(kept)
    for old in sorted(cache.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        old.unlink()
    target = dist / "environment.tar.gz"
    target.unlink(missing_ok=True)
    try:
        os.link(kept, target)
    except OSError:  # another disk
        shutil.copy(kept, target)
    return target


def _install(folder: Path, left_out: tuple[str, ...], index: str | None, torch_from: list[str]) -> Path:
    uv = (
        shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv") or sys.exit("uv: not installed")
    )
    base = os.path.realpath(sys.executable)
    subprocess.run([uv, "venv", "--quiet", "--relocatable", "--python", base, str(folder)], check=True)
    python = str(folder / "bin" / "python")
    overrides = folder / "left-out.txt"
    overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in left_out))
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", str(CONSTRAINTS)]
    if index and "torch" not in left_out:
        subprocess.run([*install, "--index-url", index, "torch", "torchvision"], check=True)
    # The project's requirements and not the project, which comes by --py-files: a change of it packs nothing anew.
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    needs = ["--override", str(overrides), "--requirement", str(ROOT / "setup.cfg"), *extras]
    subprocess.run([*install, "--compile-bytecode", *needs], check=True, timeout=3600)
    if torch_from:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "torch-from.pth").write_text("".join(f"{place}\n" for place in torch_from))
    return folder


def _useful(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Packages' own tests and C headers are a twelfth of the environment, and every executor unpacks it."""
    return None if Path(entry.name).name in ("tests", "include") else entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--torch", action="store_true", help="pack torch, too")
    parser.add_argument("--torch-index", metavar="URL", help="where to take that torch from")
    parser.add_argument("--torch-from", action="append", default=[], metavar="FOLDER", help="where workers find one")
    options = parser.parse_args()
    options.dist.mkdir(parents=True, exist_ok=True)
    for made in (
        project(options.dist),
        environment(options.dist, options.torch, options.torch_index, options.torch_from),
    ):
        print(f"{made}  {made.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
