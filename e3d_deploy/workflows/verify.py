"""Comparison of a bundle's backend with PyTorch: opens both sides, and explains a difference."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from numpy.typing import NDArray

from e3d_deploy import frames
from e3d_deploy.bundle.folder import Bundle, record_verification
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.files import write_file
from e3d_deploy.libraries import is_importable
from e3d_deploy.paths import check_path
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.arguments import check_counts
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import REFERENCE_BACKEND, find, has_libraries
from e3d_deploy.runtime.choose import Choice, choose, open_first
from e3d_deploy.runtime.verify import Report
from e3d_deploy.runtime.verify import verify as verify_backend
from e3d_deploy.workflows.opening import folder_of
from e3d_deploy.workflows.places import check_picture

if TYPE_CHECKING:
    from e3d_deploy.export.precision.diagnosis import Finding

Against = Literal["auto", "torch", "reference"]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of verifying a backend."""

    report: Report
    """Differences from PyTorch, and their budgets."""
    choice: Choice | None
    """Choice of `auto`; None if the backend was named, or if no backend agrees with the reference clip."""
    computed: Mapping[str, int] | None
    """Number of products of a step that ran in each precision; None if the backend does not report it."""
    findings: tuple["Finding", ...]
    """First errors in the step graph of a backend that failed; empty if they cannot be found."""

    @property
    def passed(self) -> bool | None:
        """True if all differences are within the budget; None if the comparison would show nothing."""
        return None if self.report.has_no_verdict else self.report.passed

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        why = {} if self.report.passed else {"why": [one.to_dict() for one in self.findings]}
        return {**self.report.to_dict(), "computed": self.computed, "choice": self.choice, **why}


def verify(
    bundle: Bundle | str | Path,
    backend: str = "auto",
    *,
    against: Against = "auto",
    clip: str | Path | None = None,
    layout: str | None = None,
    steps: int | None = None,
    threads: int | None = None,
    picture: str | Path | None = None,
    remark: Notify = silent,
) -> Verification:
    """Compare a backend with PyTorch over a whole rollout.

    The report on the reference clip is stored in `verify.json` in the folder of the bundle.

    Args:
        bundle: bundle, opened or as the path of its folder.
        backend: name of a backend; `auto` for the one that `load` selects.
        against: `torch` for PyTorch on this machine, `reference` for its outputs recorded at export; `auto` for PyTorch
            if it is installed, and for the recorded outputs otherwise or if PyTorch itself is verified.
        clip: clip to compare on, which needs PyTorch; None for the reference clip of the bundle.
        layout: axes of the array in `clip`, such as `THWC`; None to infer them from the shape.
        steps: number of steps to compare, at least those of the rollout; more than those need PyTorch.
        threads: CPU threads of a step; None leaves the number to the library.
        picture: PNG file for a plot of the difference at each step.
        remark: called with the reason for the choice of `auto`.

    Raises:
        BackendUnavailable: a library is missing, or no backend opens.
        BundleError: the bundle is damaged, or its reference clip cannot detect errors.
        ConfigError: an argument is invalid, or the clip has too little contrast or motion.
        ClipError, ShapeError: the clip cannot be read, or does not fit the model.
    """
    check_counts(steps=steps)
    if against not in get_args(Against):
        raise ConfigError(f"against: got {against!r}, expected one of {', '.join(get_args(Against))}")
    if clip is None and layout is not None:
        raise ConfigError("--layout requires --clip; give both, or neither")
    clip = None if clip is None else check_path("clip", clip)
    picture = None if picture is None else check_path("picture", picture)
    check_picture(picture, clip, folder_of(bundle))
    opened = Bundle.of(bundle)
    given = None if clip is None else _frames_of(opened, clip, layout)
    with ExitStack() as stack:
        candidate, choice = (
            _open_auto(opened, threads, remark)
            if backend == "auto"
            else (open_backend(opened, backend, threads=threads), None)
        )
        stack.enter_context(candidate)
        # PyTorch always agrees with itself, so it is compared with its outputs recorded at export.
        itself = candidate.name == REFERENCE_BACKEND and clip is None and steps is None
        if against == "torch" or (against == "auto" and has_libraries(find(REFERENCE_BACKEND)) and not itself):
            yardstick = stack.enter_context(open_backend(opened, REFERENCE_BACKEND, threads=threads))
        else:
            yardstick = None
        report = verify_backend(opened, candidate, yardstick, given, steps=steps)
        count_products = find(candidate.name).count_products
        computed = None if count_products is None else count_products(candidate)
        findings = () if report.passed else _why(opened, candidate.name, threads)
    if given is None and not report.has_no_verdict:
        record_verification(opened, report.to_dict())
    if picture is not None:
        from e3d_deploy.measure import plots

        write_file(picture, plots.drift(report))
    return Verification(report=report, choice=choice, computed=computed, findings=findings)


def _frames_of(bundle: Bundle, clip: Path, layout: str | None) -> NDArray[Any]:
    """Read a clip of the length of the bundle's rollout; return frames [T, C, H, W]."""
    config = bundle.config
    form = Form.of(config, bundle.card, layout)
    length = bundle.context_length + bundle.horizon
    pictures = read_clips(clip, form, most=length, least=bundle.context_length, count=1).frames[0]
    return frames.to_frames(pictures, image_size=config.image_size, channels=config.channels, name=str(clip))


def _open_auto(bundle: Bundle, threads: int | None, remark: Notify) -> tuple[Backend, Choice | None]:
    """Open the backend that `load` selects.

    If no backend agrees with the reference, open the first backend that can be opened.

    Raises:
        BackendUnavailable: no backend opens.
    """
    try:
        backend, choice = choose(bundle, threads=threads)
    except BackendUnavailable:
        # No backend agrees in the first steps. The report on the opened backend shows where the backend differs.
        backend = open_first(bundle, threads=threads)
        remark(f"auto selects no backend; verifying {backend.name}, the first that opens")
        return backend, None
    remark(f"auto selects {choice.backend}: {choice.reason}")
    return backend, choice


def _why(bundle: Bundle, backend: str, threads: int | None) -> "tuple[Finding, ...]":
    """Return the first errors in the step graph; empty if the backend or a missing library rules out the search."""
    session = find(backend).explained_by
    if session is None or not is_importable("onnx") or not is_importable("onnxruntime"):
        return ()
    from e3d_deploy.export.precision.diagnosis import explain

    return tuple(explain(bundle, backend, native=session == "session", threads=threads))
