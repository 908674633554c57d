"""The quantities of a round that a balance metric asks for beyond the variation of whole blocks (METHOD 5)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance.metrics import UNTRAINED
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.exchange.mix import Variation
from dmmlkd_ext.training.exchange.ranks import Slice
from dmmlkd_ext.training.learn.batches import RoundBatches
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]

HEAD, PROJECTION = "head", "projection"


class RoundObserver:
    """Measures what a metric needs, at the places of the round where it can be seen; nothing if it needs nothing.

    Args:
        population: the devices of this rank.
        part: which devices these are.
        needs: names in `dmmlkd_ext.balance.metrics.QUANTITIES`.
    """

    def __init__(self, population: Population, part: Slice, needs: Collection[str]) -> None:
        self.population, self.part, self.needs = population, part, frozenset(needs)
        self._found: dict[str, FloatArray] = {}

    @torch.no_grad()
    def after_training(self, batches: RoundBatches) -> None:
        """Measure the parts of the blocks, and the heads, before the exchange overwrites the round's start."""
        self._found = {}
        for column, name in enumerate(self.population.network.modalities if self.needs else ()):
            block, parameters = self.population.blocks[name], self.population.network.layouts[name].parameters
            width, head = block.start.shape[1], parameters[HEAD].size
            encoder = width - head - parameters[PROJECTION].size
            for part, place in (("encoder", slice(0, encoder)), (HEAD, slice(width - head, width))):
                start, end = block.start[:, place], block.local[:, place]
                for kind, values in (("distance", end - start), ("start", start), ("end", end)):
                    self._keep(f"{part} {kind}", column, torch.linalg.vector_norm(values, dim=1))
            if len(batches.indices) and self.needs & set(UNTRAINED):
                log_p, present = self._true_log_probability(name, column, batches)
                for kind, values in (("score", log_p.exp()), ("loss", -log_p)):
                    self._keep(kind, column, (values * present).sum(1) / present.sum(1))  # 0 / 0: it saw no sample

    @torch.no_grad()
    def after_exchange(self) -> None:
        """Measure how far the exchange moved the trained parameters."""
        for column, name in enumerate(self.population.network.modalities if "mixed distance" in self.needs else ()):
            block = self.population.blocks[name]
            self._keep("mixed distance", column, torch.linalg.vector_norm(block.local - block.start, dim=1))

    def quantities(self, variations: Mapping[str, Variation]) -> dict[str, FloatArray]:
        """Return the quantities of all ranks' devices, those of whole blocks among them, [devices, modalities]."""
        names = self.population.network.modalities
        found = {
            "distance": np.stack([variations[name].distance for name in names], axis=1),
            "start": np.stack([variations[name].start for name in names], axis=1),
        }
        missing = {name: np.full(self.population.holds.shape, np.nan) for name in sorted(self.needs)}
        columns = {
            f"{name} {column}": values[:, column]
            for name, values in (missing | self._found).items()
            for column in range(len(names))
        }
        everyone = self.part.gather(columns) if columns else {}
        return found | {
            name: np.stack([everyone[f"{name} {column}"] for column in range(len(names))], axis=1) for name in missing
        }

    def _keep(self, quantity: str, column: int, measured: torch.Tensor) -> None:
        """Keep a quantity, one number for each device that holds the modality, if it is asked for."""
        if quantity not in self.needs:
            return
        name = self.population.network.modalities[column]
        values = self._found.setdefault(quantity, np.full(self.population.holds.shape, np.nan))
        values[self.population.blocks[name].devices, column] = measured.double().cpu().numpy()

    def _true_log_probability(self, name: str, column: int, batches: RoundBatches) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the heads of a modality alone say of the true class in the first batch, and who has it.

        Both are [devices that hold the modality, batch], the second is bool.
        """
        population = self.population
        block, network = population.blocks[name], population.network
        devices = torch.from_numpy(block.devices).to(block.local.device)
        head = network.layouts[SHARED].views(population.blocks[SHARED].local)[HEAD][devices]
        weights, inputs = network.layouts[name].views(block.local), batches.features(0, name, devices)
        parts = network.forward(name, weights, head, inputs)
        log_p = (parts.common_logits + parts.specific_logits).log_softmax(-1)
        labels = batches.labels(0, devices).unsqueeze(-1)
        return log_p.gather(-1, labels).squeeze(-1), batches.present(0, devices)[..., column]
