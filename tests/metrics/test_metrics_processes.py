"""Several processes with unequal shares, one of them possibly empty, report what one process reports."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from searches import ToPlane
from subjects import linear_case

from lit_xai import randomness
from lit_xai.attributions import BoundarySaliency
from lit_xai.metrics import BoundaryDistance, Closeness, Gini, Perturbation

SAMPLES = 65


def shells():
    return {
        "perturbation": Perturbation(3, chunk=8),
        "gini": Gini(),
        "boundary": BoundaryDistance(ToPlane()),
        "closeness": Closeness(),
    }


def report(rows):
    """What this process says about all samples, having seen some rows of them."""
    case = linear_case()
    draw = torch.Generator().manual_seed(1)
    inputs = 0.5 + 0.1 * torch.rand(SAMPLES, 2, 5, 5, generator=draw, dtype=torch.float64)
    maps = torch.randn(SAMPLES, 2, 5, 5, generator=draw, dtype=torch.float64)
    maps[::7] = math.nan
    with torch.no_grad():
        target = case.model(inputs).argmax(1)
    out = {}
    for name, metric in shells().items():
        metric.set_dtype(torch.float64)
        for part in rows.split(10) if len(rows) else ():
            given = {"model": case.model, "inputs": inputs[part], "target": target[part]}
            with randomness.keyed(0, part):
                metric.update(**given, attributions=maps[part], attribution=BoundarySaliency(ToPlane()))
        spread = metric.spread()
        out[name] = {"values": metric.compute(), "spread": spread, "again": metric.spread()}
        assert len(metric.scores) == math.ceil(len(rows) / 10)  # its own share is back
    return out


def shares(first: int) -> list[torch.Tensor]:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))
    return [order[:first], order[first:]]


def work(rank: int, firsts: list[int], folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({first: report(shares(first)[rank]) for first in firsts}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path):
    firsts = [33, 65, 1]
    mp.spawn(work, args=(firsts, str(tmp_path)), nprocs=2)
    expected = report(torch.arange(SAMPLES))
    assert expected["gini"]["spread"][""]["missing"] == 10
    for rank in range(2):
        reports = torch.load(tmp_path / f"{rank}.pt")
        for first in firsts:
            for name, facts in expected.items():
                got = reports[first][name]
                for quantity, value in facts["values"].items():
                    torch.testing.assert_close(got["values"][quantity], value, rtol=0, atol=1e-9)
                    spread = got["spread"][quantity]
                    assert spread == pytest.approx(facts["spread"][quantity], abs=1e-9, nan_ok=True)
                    assert spread == pytest.approx(got["again"][quantity], abs=0, nan_ok=True)
                    assert spread["count"] == SAMPLES
