"""Faults of the packages of TensorRT and TensorRT-RTX, found in their metadata."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.site import Installed, Site

CUDA = (13, 12)
"""Major versions of CUDA for which there are packages."""
SYSTEM_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
)


@dataclass(frozen=True)
class Product:
    """TensorRT or TensorRT-RTX."""

    name: str
    """Name of the packages and of the backend."""
    library: str
    """File name of the main library, without its major version."""

    @property
    def names(self) -> list[str]:
        """Names of all packages."""
        parts = [f"{self.name}-cu{cuda}{part}" for cuda in CUDA for part in ("", "-bindings", "-libs")]
        return [self.name, *parts]


PRODUCTS = (Product("tensorrt", "libnvinfer.so."), Product("tensorrt-rtx", "libtensorrt_rtx.so."))


def tensorrt_faults(site: Site, variables: Mapping[str, str], *, gpu: bool = True) -> list[Fault]:
    """Find packages that replace each other, and libraries that are missing or of another version.

    Args:
        variables: environment variables.
        gpu: True if the machine has an NVIDIA GPU. Without one, only TensorRT-RTX is of use, because it builds engines.
    """
    products = [product for product in PRODUCTS if gpu or product.name == "tensorrt-rtx"]
    return [fault for product in products for fault in _of_product(product, site, variables)]


def _of_product(product: Product, site: Site, variables: Mapping[str, str]) -> list[Fault]:
    bindings = {cuda: one for cuda in CUDA if (one := site.find(f"{product.name}-cu{cuda}-bindings"))}
    if twice := _twice(product, site, bindings):
        return [twice]
    folders = [entry for entry in variables.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    return [
        fault
        for cuda, one in bindings.items()
        if (fault := _libraries(product, one, site.find(f"{product.name}-cu{cuda}-libs"), folders))
    ]


def _twice(product: Product, site: Site, bindings: Mapping[int, Installed]) -> Fault | None:
    if len(bindings) > 1:
        kept = max(bindings)
        names = " and ".join(f"{one.name} {one.version}" for one in bindings.values())
        there = " ".join(name for name in product.names if site.find(name))
        return Fault(
            "tensorrt-twice",
            f"{names} are both installed and overwrite each other's files",
            f"pip uninstall -y {there} && pip install {product.name}-cu{kept}=={bindings[kept].version}",
            (product.name,),
        )
    copies = [one for one in site.all(product.name) if not one.is_source]
    system = [one for one in copies if one.folder.name == "dist-packages"]
    if system and (len(copies) > 1 or bindings):
        ours = next(iter(bindings.values()), copies[0])
        return Fault(
            "tensorrt-twice",
            f"{product.name} {system[0].version} of the system, in {system[0].folder}, and {ours.version} of pip are "
            "both installed",
            "sudo apt remove python3-libnvinfer",
        )
    return None


def _libraries(product: Product, bindings: Installed, libs: Installed | None, folders: list[str]) -> Fault | None:
    major, stops = _major(bindings.version), (product.name,)
    needed = f"{product.library}{major}"
    fetch = f"pip install --force-reinstall --no-deps {bindings.name.replace('-bindings', '-libs')}=={bindings.version}"
    if libs is not None:
        if libs.version != bindings.version:
            what = f"{libs.name} is {libs.version}, but {bindings.name} is {bindings.version}"
            return Fault("tensorrt-version", what, fetch, stops if _major(libs.version) != major else ())
        return None
    there = _system_majors(product, [*folders, *SYSTEM_FOLDERS])
    if major in there:
        return None
    if there:
        what = f"{bindings.name} {bindings.version} needs {needed}, but the system has {product.library}{max(there)}"
        return Fault("tensorrt-version", what, fetch, stops)
    what = f"{bindings.name} {bindings.version} is installed without its libraries ({needed})"
    return Fault("tensorrt-libs-missing", what, fetch, stops)


def _system_majors(product: Product, folders: list[str]) -> list[int]:
    files = [file.name for folder in folders for file in Path(folder).glob(f"{product.library}*")]
    return [int(found[1]) for name in files if (found := re.search(r"\.so\.(\d+)", name))]


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0
