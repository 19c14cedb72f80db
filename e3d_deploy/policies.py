"""Precision policies: the data type of convolutions and matrix products, and the allowed loss of quality."""

from dataclasses import asdict, dataclass, fields, replace

from e3d_deploy.errors import ConfigError

POLICIES = ("int8", "fp8", "fp16", "bf16", "tf32", "fp32")
"""Names of the policies, ordered from cheapest: by the bytes of a value, then by its precision."""

MIN_SHARE = 0.5
"""Minimum share of all convolutions and matrix products that a graph computes in the data type of its policy."""


@dataclass(frozen=True)
class Budget:
    """Allowed deviation of a graph from PyTorch float32 over a whole rollout; limits that are None are not checked."""

    difference: float | None = None
    """Maximum absolute difference of predictions. In fp32, final states may differ by `EXACT_DIFFERENCE`."""
    dssim: float | None = None
    """Maximum loss of SSIM against the truth, averaged over the forecast."""
    dpsnr: float | None = None
    """Maximum loss of PSNR against the truth, averaged over the forecast (dB)."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ConfigError(
                    f"budget: got {value!r} for {name}, expected a finite number of at least 0; omit {name} to skip "
                    "the check"
                )

    def to_dict(self) -> dict[str, float]:
        """Return the limits that are not None, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


PICTURE_RANGE = 1.0
"""Maximum difference of predictions that any budget allows: with a larger difference, black could become white."""
EXACT_DIFFERENCE = 1e-4
EXACT = Budget(difference=EXACT_DIFFERENCE)
CLOSE = Budget(dssim=0.001, dpsnr=0.05)
ROUGH = Budget(dssim=0.01, dpsnr=0.1)
BUDGETS = {"fp32": EXACT, "tf32": CLOSE, "bf16": CLOSE, "fp16": CLOSE, "fp8": ROUGH, "int8": ROUGH}


ROUNDING = 4
"""Factor for networks that amplify rounding errors. The allowed difference is at least this factor times the difference
between PyTorch in float32 and in float64 on the reference clip, because no backend can be expected to differ less from
PyTorch in float32 than PyTorch in float32 differs from float64. The full-size network with random weights needs this
factor; docs/model.md lists the numbers."""
MAX_ROUNDING = 0.1
"""Maximum allowed difference that `ROUNDING` may lead to: a tenth of the range of a picture. With a larger allowed
difference, agreement would mean nothing, and `verify` reports it as unproved."""


def default_budget(policy: str, rounding: float) -> Budget:
    """Return the budget of a policy for a network whose results in float32 and float64 differ by `rounding`."""
    budget = BUDGETS[policy]
    if budget.difference is None:
        return budget
    return replace(budget, difference=max(budget.difference, ROUNDING * rounding))


LARGEST = Budget(difference=PICTURE_RANGE, dssim=1.0, dpsnr=48.0)
"""Maximum budget that users can set. An error of one gray level is a PSNR of 48 dB."""


def parse_budget(text: str) -> Budget:
    """Parse a budget such as `dssim=0.001,dpsnr=0.05`.

    Raises:
        ConfigError: A name is unknown, or a value is not a number, negative, or above `LARGEST`.
    """
    names = [field.name for field in fields(Budget)]
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in names or not 0 <= number < float("inf"):
            raise ConfigError(f"budget: got {part!r}, expected NAME=NUMBER, where NAME is one of {', '.join(names)}")
        if number > (most := LARGEST.to_dict()[name]):
            raise ConfigError(f"budget: got {part!r}, expected at most {name}={most:g}")
        found[name] = number
    return replace(Budget(), **found)
