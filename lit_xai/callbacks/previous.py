"""The maps of the last look, for metrics that compare one look with the next."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lit_xai.callbacks.record import save
from lit_xai.callbacks.share import everyone
from lit_xai.metrics.base import Saliency
from lit_xai.types import Images, Labels

Maps = Mapping[str, np.ndarray]
LOOKS = 2  # one to compare with, and one more for a run that is resumed from before the last look


class Previous:
    """Maps of the last look, summed over channels; kept in the run folder, so that a resumed run has them.

    The last two looks stay, as `explanations/maps_<epoch>.npz`: a run that was cut off after a look, and
    before its checkpoint, looks again at the same epoch.
    """

    def __init__(self) -> None:
        self._maps: Maps | None = None

    def recall(self, trainer: L.Trainer) -> None:
        """Find the last look of an earlier part of the run, at the first look of this one."""
        if self._maps is None:
            earlier = [path for path in _kept(trainer) if _epoch(path) < trainer.current_epoch]
            self._maps = everyone(_load(earlier[-1]) if earlier and trainer.is_global_zero else {})[0]

    def of(self, ids: Labels, inputs: Images) -> dict[str, Saliency]:
        """Maps of these images, by attribution; NaN where the last look has none."""
        maps = dict(self._maps or {})
        known = maps.pop("ids", np.empty(0, np.int64))
        names = ids.cpu().numpy()
        place = np.searchsorted(known, names)
        found = place < len(known)
        found[found] = known[place[found]] == names[found]
        seen = {}
        for name, rows in maps.items():
            chosen = np.full((len(names), *inputs.shape[2:]), np.nan, rows.dtype)
            chosen[found] = rows[place[found]]
            seen[name.removeprefix("maps/")] = torch.from_numpy(chosen).to(inputs.device)
        return seen

    def remember(self, trainer: L.Trainer, maps: Maps) -> None:
        """Keep the maps of this look, `ids` and `maps/<attribution>`, sorted by id."""
        self._maps = maps
        if trainer.is_global_zero:
            folder = _folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            save(folder / f"maps_{trainer.current_epoch:03d}.npz", maps)
            looks = [path for path in _kept(trainer) if _epoch(path) <= trainer.current_epoch]
            for path in looks[:-LOOKS]:
                path.unlink()


def summed(ids: Labels, maps: Mapping[str, Images]) -> dict[str, Tensor]:
    """Maps as they are kept: one number per pixel."""
    return {"ids": ids, **{f"maps/{name}": map_.sum(dim=1) for name, map_ in maps.items()}}


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "explanations"


def _kept(trainer: L.Trainer) -> list[Path]:
    return sorted(_folder(trainer).glob("maps_*.npz"), key=_epoch)


def _epoch(path: Path) -> int:
    return int(path.stem.partition("_")[2])


def _load(path: Path) -> Maps:
    with np.load(path) as kept:
        return {name: kept[name] for name in kept}
