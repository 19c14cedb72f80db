"""Section `profile`: the kernels of a step, with their calls and times."""

from functools import partial
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.rows import COMPILED, PLAIN, Row
from benchmarks.gpu.speed import warm_up
from e3d_deploy.tf32 import arithmetic

STEPS, MOST = 4, 40
"""Number of recorded steps, which is even because of the two sets of states, and maximum number of listed kernels."""


def units(bench: Bench, batch: int) -> list[Unit]:
    """List the rows that are marked as profiled."""
    tier = 2 + (batch != bench.settings.batches[0])
    return [
        Unit(
            section=f"profile at batch {batch}",
            row=row.name,
            tier=tier,
            cost_s=60.0 if row in COMPILED else 3.0,
            work=partial(kernels, bench, batch, row),
        )
        for row in (*PLAIN, *COMPILED)
        if row.profiled
    ]


def kernels(bench: Bench, batch: int, row: Row) -> dict[str, Any]:
    """Profile steps with a full ring; return kernels ordered by time, per step. On a CPU, operators replace kernels."""
    stepper, frame = row.make(bench, batch), bench.frames(batch, 1)[0]
    warm_up(bench, stepper, batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.on_gpu
    with arithmetic(stepper.precision), profiler(activities=activities) as recorded:
        for _ in range(STEPS):
            stepper.step(frame)
        bench.wait()
    # On a GPU the events of operators repeat the times of the kernels that they launched, so only kernels are counted.
    kind = DeviceType.CUDA if bench.on_gpu else DeviceType.CPU
    times = [
        (event.key, event.count, event.self_device_time_total if bench.on_gpu else event.self_cpu_time_total)
        for event in recorded.key_averages()
        if event.device_type == kind
    ]
    times = sorted((one for one in times if one[2] > 0), key=lambda one: -one[2])
    total = sum(time_us for *_, time_us in times)
    listed = [
        {
            "kernel": name[:120],
            "calls": count / STEPS,
            "us": round(time_us / STEPS, 2),
            "share": round(time_us / total, 4),
        }
        for name, count, time_us in times[:MOST]
    ]
    return {
        "kernels": listed,
        "calls": sum(count for _, count, _ in times) / STEPS,
        "us": round(total / STEPS, 1),
        "left_out": max(0, len(times) - MOST),
    }
