"""What a plain image lacks, as wheels in a folder: `make gpu-bundle` fetches them, gpu-check imports from them.

A plain image has torch, transformers, accelerate and peft, and all that they need. Wheels are unpacked into a folder of
gpu-check's own, and only those of modules that cannot be imported: nothing is installed, and nothing that the image has
is hidden by another version.

    PYTHONPATH=tests python -m benchmarks.gpu_wheels build/gpu-bundle --python 3.12
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

LARGEST = 60 * 10**6  # bytes of all wheels together
UNUSED = ("flight", "/include/", "/tests/")  # of pyarrow
# By module: the distributions that it takes, beside what torch, transformers, accelerate and peft require.
NEEDED = {
    "pyarrow": ("pyarrow",),
    "pydantic": ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"),
    "PIL": ("pillow",),
    "typer": ("typer", "click", "shellingham", "annotated_doc"),
    "rich": ("rich", "markdown_it_py", "mdurl", "pygments"),
    "yaml": ("pyyaml",),
    "jinja2": ("jinja2", "markupsafe"),
    "markupsafe": ("markupsafe",),
    "filelock": ("filelock",),
    "httpx": ("httpx", "httpcore", "h11", "anyio", "idna", "certifi"),
    "math_verify": ("math_verify", "latex2sympy2_extended", "antlr4_python3_runtime"),
}


def main() -> None:
    """Fetch the wheels by pip, of the versions in constraints.txt, for one version of Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="of the image: 3.12")
    parser.add_argument("--machine", default=platform.machine(), help="of the image: x86_64 or aarch64")
    asked = parser.parse_args()
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    names = sorted({name for distributions in NEEDED.values() for name in distributions})
    platforms = [f"--platform=manylinux{glibc}_{asked.machine}" for glibc in ("_2_28", "_2_17", "2014")]
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    only = ["--only-binary=:all:", f"--python-version={asked.python}", *platforms]
    asked.folder.mkdir(parents=True, exist_ok=True)
    for wheel in asked.folder.glob("*.whl"):
        wheel.unlink()
    subprocess.run([*fetch, *only, f"--constraint={constraints}", f"--dest={asked.folder}", *names], check=True)
    for wheel in asked.folder.glob("pyarrow-*.whl"):
        without(wheel, UNUSED)
    size = sum(wheel.stat().st_size for wheel in asked.folder.glob("*.whl"))
    print(
        f"{asked.folder}: {len(list(asked.folder.glob('*.whl')))} wheels for Python {asked.python}, {size / 1e6:.1f} MB"
    )
    if size > LARGEST:
        sys.exit(
            f"{asked.folder}: {size / 1e6:.1f} MB is more than {LARGEST / 1e6:.0f}. Leave something out of NEEDED."
        )


def without(wheel: Path, parts: tuple[str, ...]) -> None:
    """Leave out the files whose path contains one of `parts`."""
    new = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as made:
        for info in old.infolist():
            if not any(part in info.filename for part in parts):
                made.writestr(info, old.read(info))
    os.replace(new, wheel)


def provide(bundle: Path, place: Path) -> list[str]:
    """Unpack what cannot be imported and put it on the path, also of processes started later. -> the wheels used.

    Ends the program if something is missing that the bundle does not have.
    """
    missing = [module for module in NEEDED if find_spec(module) is None]
    if not missing:
        return []
    wanted = sorted({name for module in missing for name in NEEDED[module]})
    found = {wheel.name.split("-")[0].lower(): wheel for wheel in bundle.glob("*.whl")}
    lacking = [name for name in wanted if name not in found and find_spec(name) is None]
    if lacking:
        tag = f"{sys.version_info[0]}.{sys.version_info[1]}"
        sys.exit(
            f"{bundle}: no wheel of {', '.join(lacking)}, and this Python has none. Run `make gpu-bundle "
            f"BUNDLE_PYTHON={tag}` where there is a network, and copy the folder here."
        )
    used = [found[name] for name in wanted if name in found]
    place.mkdir(parents=True, exist_ok=True)
    for wheel in used:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    sys.path.append(str(place))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(place)]))
    try:
        for module in missing:
            import_module(module)
    except ImportError as error:
        version = sys.version.split()[0]
        sys.exit(f"{bundle}: its wheels are not for Python {version} here ({error}). Run `make gpu-bundle` for it.")
    return [wheel.name for wheel in used]


if __name__ == "__main__":
    main()
