"""Search for the faults of this installation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from e3d_deploy import inventory
from e3d_deploy.doctor import probe
from e3d_deploy.doctor.driver_faults import Driver, driver_faults
from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.gpu_builds import GpuBuild, gpu_builds, has_nvidia_gpu, missing_driver_faults
from e3d_deploy.doctor.library_faults import library_faults, present
from e3d_deploy.doctor.onnxruntime_faults import PROVIDER, is_gpu_build, provider_faults, twice_faults
from e3d_deploy.doctor.place_faults import cache_faults, telemetry_faults
from e3d_deploy.doctor.shadow_faults import shadow_faults
from e3d_deploy.doctor.site import Site
from e3d_deploy.doctor.tensorrt_faults import tensorrt_faults
from e3d_deploy.runtime.backends.specs import BACKENDS, has_libraries


def find_faults(site: Site | None = None, variables: Mapping[str, str] = os.environ) -> list[Fault]:
    """Search for faults; libraries are loaded in processes of their own, which takes a second or two.

    Args:
        site: folders in which distributions are searched; None means `sys.path`. Trials always use `sys.path`.
        variables: environment variables.
    """
    site, driver = site or Site(), inventory.has_nvidia_driver()
    installed, builds = present(site, driver=driver), gpu_builds(site)
    errors = probe.import_errors(list(installed))
    tensorrt = tensorrt_faults(site, variables, gpu=driver or has_nvidia_gpu())
    twice = twice_faults(site, errors, driver=driver)
    # These faults explain why a library does not load.
    explained = {"onnxruntime"} if twice else set()
    explained |= {one for fault in tensorrt if fault.stops for one in installed if _belongs(one, fault.stops[0])}
    broken = {module: error for module, error in errors.items() if module not in explained}
    if twice and not driver:  # then onnxruntime-gpu is uninstalled in any case
        builds = [one for one in builds if one.name != "onnxruntime-gpu"]
    faults = [
        *shadow_faults(site),
        *twice,
        *tensorrt,
        *library_faults(installed, broken),
        *(_gpu_faults(site, builds, variables) if driver else missing_driver_faults(builds)),
        *cache_faults(),
        *telemetry_faults(variables),
    ]
    return list(map(_of_installed, faults))


def _belongs(module: str, product: str) -> bool:
    return module.removesuffix("_bindings") == product.replace("-", "_")


def _of_installed(fault: Fault) -> Fault:
    """Return a fault that stops only backends whose libraries are installed."""
    return replace(fault, stops=tuple(name for name in fault.stops if has_libraries(BACKENDS[name])))


def _gpu_faults(site: Site, builds: Sequence[GpuBuild], variables: Mapping[str, str]) -> list[Fault]:
    try:
        found = probe.attempt("driver")
    except OSError:
        return []
    if "error" in found:
        stops = tuple(one.backend for one in builds)
        return [Fault("gpu-missing", f"the NVIDIA driver does not load ({found['error']})", "nvidia-smi", stops)]
    driver = Driver((found["version"] // 1000, found["version"] % 1000 // 10), found["code"], found["gpus"])
    faults = driver_faults(driver, builds, variables)
    gpu = site.find("onnxruntime-gpu")
    if gpu is not None and is_gpu_build(gpu) and not any("onnxruntime-cuda" in fault.stops for fault in faults):
        faults += provider_faults(gpu, probe.attempt("cuda-provider", str(gpu.folder / PROVIDER)).get("missing", ()))
    return faults
