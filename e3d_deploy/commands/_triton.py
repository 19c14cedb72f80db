"""`e3d pack --triton`: checks of the options, and the table of models."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import is_given
from e3d_deploy.commands._output import table, warn, working
from e3d_deploy.runtime.backends.specs import find

if TYPE_CHECKING:
    from e3d_deploy.runtime import Bundle
    from e3d_deploy.triton.repository import Model


def pack_repository(
    bundles: Sequence[Path],
    output: Path,
    *,
    flavours: Sequence[str],
    name: str | None,
    engines: bool,
    overwrite: bool,
    **serving: Any,
) -> None:
    """Write a model repository, and print its path and its models.

    Args:
        serving: fields of `Serving`.
    """
    from e3d_deploy.triton.config import Serving
    from e3d_deploy.triton.repository import write_repository

    if name is not None and len(bundles) > 1:
        raise click.UsageError(f"--name names the model of one bundle, got {len(bundles)} bundles; leave --name out")
    check_used(flavours)
    check_device(flavours, serving["backend"], serving["device"])
    with working(f"packing {', '.join(map(str, bundles))}") as progress:
        opened = [open_bundle(bundle) for bundle in bundles]
        models = write_repository(
            opened,
            output,
            flavours=flavours,  # type: ignore[arg-type]
            name=name,
            serving=Serving(**serving),
            engines=engines,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(output)
    show(models)
    if "python" in flavours:
        remark_on_engines(opened, engines)
    place = shlex.quote(str(output))
    container = f"in a container of Triton: tritonserver --model-repository={place}"
    if set(flavours) == {"python"}:  # The server that the script installs starts with no other flavour.
        click.echo(f"next: deploy/triton/serve {place}", err=True)
        click.echo(f"or, {container}", err=True)
    else:
        click.echo(f"next, {container}", err=True)


def check_used(flavours: Sequence[str]) -> None:
    """Refuse options that none of the flavours uses."""
    users = {"engines": ["python"], "backend": ["python"], "threads": ["python", "onnxruntime"],
             "max_batch": ["python", "onnxruntime"]}  # fmt: skip
    for option, needed in users.items():
        if is_given(option) and not set(needed).intersection(flavours):
            raise click.UsageError(
                f"{flag_of(option)} has no effect without --flavour {' or '.join(needed)}; leave it out, or add this "
                "flavour"
            )


def flag_of(name: str) -> str:
    """Return the flag of a parameter of the command."""
    return next(one.opts[-1] for one in click.get_current_context().command.params if one.name == name)


def check_device(flavours: Sequence[str], backend: str, device: str | None) -> None:
    """Refuse a device class on which a flavour does not run, and threads on the GPU."""
    spec = None if backend == "auto" else find(backend)
    if device == "cpu" and "tensorrt" in flavours:
        raise click.UsageError("--device cpu: the flavour tensorrt runs on the GPU; leave --device out")
    if device == "cpu" and spec is not None and spec.device == "gpu":
        raise click.UsageError(f"--device cpu: the backend {backend} runs on the GPU; leave --device out")
    if is_given("threads") and spec is not None and spec.device == "gpu" and "onnxruntime" not in flavours:
        raise click.UsageError(f"--threads: {backend} runs on the GPU and has no setting for threads; leave it out")


def show(models: Sequence["Model"]) -> None:
    """Print the models as a table, with a warning for each model that does not renew states."""
    from e3d_deploy.triton.config import renewal_of

    table(
        ["model", "flavour", "backend", "device", "streams per call", "renewal"],
        [(one.name, one.flavour, one.backend, one.device, one.max_batch, one.renewal) for one in models],
        left=4,
    )
    for one in models:
        if one.renewal != (usual := renewal_of(one.bundle)):
            warn(
                f"{one.name}: keeps one state from the first frame on (renewal {one.renewal}), but the default of the "
                f"bundle is {usual}; end its sequences early, or serve the flavour python"
            )


def remark_on_engines(bundles: Sequence["Bundle"], engines: bool) -> None:
    """Print which engines of the bundles were omitted, or that there are none."""
    for bundle in bundles:
        if bundle.manifest.engines and not engines:
            left = ", ".join(bundle.manifest.engines)
            click.echo(f"omitted: the engines {left}; run `e3d build` on the device to build them", err=True)
        elif engines and not bundle.manifest.engines:
            click.echo(f"--with-engines: {bundle.path} has no engines; run `e3d build` to build them", err=True)
