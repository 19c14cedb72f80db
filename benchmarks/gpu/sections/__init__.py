"""Sections of the GPU benchmark; each module lists its rows as units."""

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.sections import backends, micro, profile, roofline, steps, training


def units(bench: Bench) -> list[Unit]:
    """Return the units of all sections, ordered by value within a tier; does not use the device."""
    batches = bench.settings.batches
    return [
        *roofline.units(bench),
        *(unit for batch in outer_first(batches) for unit in steps.plain(bench, batch)),
        *backends.units(bench),
        *backends.bundles(bench),
        *(unit for batch in outer_first(batches) for unit in profile.units(bench, batch)),
        *(unit for batch in outer_first(batches) for unit in micro.units(bench, batch)),
        *(unit for batch in outer_first(batches) for unit in steps.compiled(bench, batch)),
        *training.units(bench),
    ]


def outer_first(batches: tuple[int, ...]) -> list[int]:
    """Return the numbers of streams with the first and the last in front, because others can be estimated from them."""
    ends = list(dict.fromkeys((batches[0], batches[-1])))
    return ends + [batch for batch in batches if batch not in ends]
