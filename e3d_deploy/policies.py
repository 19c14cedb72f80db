"""Precision policies: which type the products of a graph are computed in, and what that may cost."""

from dataclasses import asdict, dataclass, fields, replace

from e3d_deploy.errors import ConfigError

POLICIES = ("int8", "fp8", "fp16", "bf16", "tf32", "fp32")
"""The cheapest first: bytes that a weight takes and a product moves, then how much of a number is kept."""

MIN_SHARE = 0.5
"""Smallest share of all convolutions and matrix products that a policy computes in its type."""


@dataclass(frozen=True)
class Budget:
    """Allowed deviation of a graph from PyTorch float32 over a whole rollout on a real clip; None if not judged."""

    difference: float | None = None
    """Largest absolute difference of predictions. In fp32 `verify` judges final states too, by `EXACT_DIFFERENCE`."""
    dssim: float | None = None
    """SSIM against the truth that is lost, mean over the forecast."""
    dpsnr: float | None = None
    """PSNR against the truth that is lost, dB, mean over the forecast."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if not 0 <= value < float("inf"):
                raise ConfigError(
                    f"budget: got {value!r} for {name}, expected a number from 0 on; leave it out to not judge it"
                )

    def to_dict(self) -> dict[str, float]:
        """Return the limits that are not None, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


PICTURE_RANGE = 1.0
"""Largest difference of predictions that passes under any budget: by more, a black pixel may be white."""
EXACT_DIFFERENCE = 1e-4
EXACT = Budget(difference=EXACT_DIFFERENCE)
CLOSE = Budget(dssim=0.001, dpsnr=0.05)
ROUGH = Budget(dssim=0.01, dpsnr=0.1)
BUDGETS = {"fp32": EXACT, "tf32": CLOSE, "bf16": CLOSE, "fp16": CLOSE, "fp8": ROUGH, "int8": ROUGH}


ROUNDING = 4
"""A network that amplifies rounding errors is given this many times what PyTorch's own float32 loses against
float64 on the reference clip, where that is more than the budget: no backend is closer to PyTorch than PyTorch
to the truth. The full-size network with random weights needs it; docs/model.md has the numbers."""
MOST_ROUNDING = 0.1
"""Most that predictions may be given so, a tenth of the range of a picture: above it, agreement proves nothing."""


def default_budget(policy: str, rounding: float) -> Budget:
    """Return the budget of a policy for a network whose float32 differs from its float64 by `rounding`."""
    budget = BUDGETS[policy]
    if budget.difference is None:
        return budget
    return replace(budget, difference=max(budget.difference, ROUNDING * rounding))


LARGEST = Budget(difference=PICTURE_RANGE, dssim=1.0, dpsnr=48.0)
"""Largest budgets that are taken. A picture that is one grey level off has 48 dB."""


def parse_budget(text: str) -> Budget:
    """`dssim=0.001,dpsnr=0.05` as a budget.

    Raises:
        ConfigError: a name that no budget has, no number from 0 on, or one above `LARGEST`.
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
            raise ConfigError(f"budget: got {part!r}, expected NAME=NUMBER with a name of {', '.join(names)}")
        if number > (most := LARGEST.to_dict()[name]):
            raise ConfigError(f"budget: got {part!r}, expected at most {name}={most:g}")
        found[name] = number
    return replace(Budget(), **found)
