"""Token routing: while training, a random share of an image's tokens goes through the middle blocks, the rest around.

What is left out skips those blocks as it is and joins again behind them, so that shapes, weights and their names, and
the model wherever it is used, stay what they are.

B  images of a micro-batch, N  tokens of an image, K  those that are kept, D  width

Sources: TREAD, arXiv 2501.04765, for the route; SPRINT, arXiv 2510.21986, for the finish with all tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from train.config import TrainConfig
from train.loader import Batch, generator

Block = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The tokens that are kept, of each image, from the block `first` up to the block before `end`."""

    kept_BK: Tensor
    first: int
    end: int


def draw_route(config: TrainConfig, batch: Batch) -> Route | None:
    """The route of a micro-batch, None where all tokens go all the way.

    Which tokens are kept depends on the seed and the position of each image's visit alone, as all that the loader
    draws: so processes and resumed runs agree.
    """
    routing = config.routing_at(batch.position // config.batch.total + 1)
    if routing is None:
        return None
    tokens = config.model.tokens
    kept = routing.kept_of(tokens)
    rows = [
        generator(config.seed, "route", batch.position + n).permutation(tokens)[:kept] for n in range(len(batch.keys))
    ]
    kept_BK = torch.from_numpy(np.sort(np.stack(rows))).to(batch.latents_BCHW.device, non_blocking=True)
    return Route(kept_BK=kept_BK, first=routing.first, end=config.model.layers - routing.last)


class RoutedBlocks(nn.ModuleList):
    """A transformer's blocks, which take and give fewer tokens in the middle while they have a route.

    Each is called from here as it would be: hooks on the blocks themselves would be compiled into them.
    """

    route: Route | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = super().__iter__()
        return blocks if self.route is None else cast(Iterator[nn.Module], _along(list(blocks), self.route))


def _along(blocks: list[nn.Module], route: Route) -> Iterator[Block]:
    """The blocks in their order, of which the first and the last of the middle change how many tokens there are.

    The tokens that went around stay here, so each may be computed again for the backward pass.
    """
    around: list[Tensor] = []

    def changing(number: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if number == route.first:
            around[:] = [hidden]
            hidden = _gather(hidden, route.kept_BK)
        hidden = blocks[number](hidden, *args, **kwargs)
        return _scatter(around[0], route.kept_BK, hidden) if number == route.end - 1 else hidden

    for number, block in enumerate(blocks):
        yield partial(changing, number) if number in (route.first, route.end - 1) else block


def _gather(hidden_BND: Tensor, kept_BK: Tensor) -> Tensor:
    return hidden_BND.gather(1, kept_BK[:, :, None].expand(-1, -1, hidden_BND.shape[2]))


def _scatter(hidden_BND: Tensor, kept_BK: Tensor, kept_BKD: Tensor) -> Tensor:
    place_BKD = kept_BK[:, :, None].expand(-1, -1, hidden_BND.shape[2])
    return hidden_BND.scatter(1, place_BKD, kept_BKD.to(hidden_BND.dtype))


@contextmanager
def routed(model: nn.Module, route: Route | None) -> Iterator[None]:
    """Let a transformer, alone or prepared for several processes, take a route in what is computed here."""
    blocks = cast(Any, getattr(model, "module", model)).transformer_blocks
    blocks.__class__, blocks.route = RoutedBlocks, route
    try:
        yield
    finally:
        blocks.route = None
