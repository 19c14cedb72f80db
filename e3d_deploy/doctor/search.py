"""Search for the faults of this installation."""

import os
from collections.abc import Mapping

from e3d_deploy import inventory
from e3d_deploy.doctor import probe
from e3d_deploy.doctor.driver_faults import Driver, driver_faults, missing_driver_faults, needs
from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.library_faults import library_faults, present
from e3d_deploy.doctor.onnxruntime_faults import PROVIDER, is_gpu_build, provider_faults, twice_faults
from e3d_deploy.doctor.place_faults import cache_faults, telemetry_faults
from e3d_deploy.doctor.python_faults import python_faults
from e3d_deploy.doctor.site import Site
from e3d_deploy.doctor.tensorrt_faults import tensorrt_faults


def find_faults(site: Site | None = None, variables: Mapping[str, str] = os.environ) -> list[Fault]:
    """Search for faults; libraries are loaded in processes of their own, which takes a second or two.

    Args:
        site: folders in which distributions are searched; None means `sys.path`. Trials always use `sys.path`.
        variables: environment variables.
    """
    site, driver = site or Site(), inventory.has_nvidia_driver()
    installed = present(site, driver=driver)
    errors = probe.import_errors(list(installed))
    tensorrt, twice = tensorrt_faults(site, variables), twice_faults(site, errors, driver=driver)
    # These faults explain why a library does not load.
    explained = {"onnxruntime"} if twice else set()
    explained |= {one for fault in tensorrt if fault.stops for one in installed if _belongs(one, fault.stops[0])}
    broken = {module: error for module, error in errors.items() if module not in explained}
    return [
        *python_faults(site),
        *twice,
        *tensorrt,
        *library_faults(installed, broken),
        *(_gpu_faults(site, variables) if driver else missing_driver_faults(needs(site))),
        *cache_faults(),
        *telemetry_faults(variables),
    ]


def _belongs(module: str, product: str) -> bool:
    return module.removesuffix("_bindings") == product.replace("-", "_")


def _gpu_faults(site: Site, variables: Mapping[str, str]) -> list[Fault]:
    found = probe.attempt("driver")
    if "error" in found:
        stops = tuple(need.backend for need in needs(site))
        return [Fault("gpu-missing", f"the NVIDIA driver does not load ({found['error']})", "nvidia-smi", stops)]
    driver = Driver((found["version"] // 1000, found["version"] % 1000 // 10), found["code"], found["gpus"])
    faults = driver_faults(driver, needs(site), variables)
    gpu = site.find("onnxruntime-gpu")
    if gpu is not None and is_gpu_build(gpu) and not any("onnxruntime-cuda" in fault.stops for fault in faults):
        faults += provider_faults(gpu, probe.attempt("cuda-provider", str(gpu.folder / PROVIDER)).get("missing", ()))
    return faults
