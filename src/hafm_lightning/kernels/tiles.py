"""The pairs of steps of a sequence, cut into tiles of three classes: one plan for the kernels of all devices.

A learned relative bias differs from pair to pair near the diagonal (or near the same time in another segment) alone.
Everywhere else whole tiles have *one* row of the bias table. So each tile is

* **skipped**: no query of the tile sees a key of it; it is in no list,
* **constant**: every query sees every key, with the same row of the table, or
* a **look-up**: rows differ, or the mask or the end of the sequence runs through it. Its rows are kept as a *pattern*;
  equal tiles, such as all on a diagonal, share one.

What a pair is allowed and which row it has comes from ``RelativePosition.rows`` alone, so a plan serves every geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import torch
from torch import Tensor

from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

ITEM_TILES = 16
"""Equal look-ups that one program adds up, before it shares the sum out among the rows of the bias table."""


@dataclass(frozen=True)
class TileList:
    """The tiles of each line (of queries, or of keys), constant ones first, grouped by row. All int32.

    Attributes:
        edges: First tile of each line, and the number of all tiles, ``[lines + 1]``.
        lookups: First look-up of each line, ``[lines]``.
        tile: Which tile of the other side each one meets, ``[tiles]``.
        pattern: Pattern of each look-up; -1 for constant tiles, ``[tiles]``.
        run_edges: First run of constant tiles of each line, and the number of all runs, ``[lines + 1]``.
        run_row: Row of the bias table of each run, ``[runs]``.
        run_start: First tile of each run, ``[runs]``.
        run_stop: Tile after its last one, ``[runs]``.
        order: The lines, longest first, ``[lines]``.
    """

    edges: Tensor
    lookups: Tensor
    tile: Tensor
    pattern: Tensor
    run_edges: Tensor
    run_row: Tensor
    run_start: Tensor
    run_stop: Tensor
    order: Tensor

    @property
    def lines(self) -> int:
        """Number of lines."""
        return len(self.lookups)

    @classmethod
    def of(cls, row: Tensor, pattern: Tensor) -> TileList:
        """From the row of each constant tile and the pattern of each look-up, ``[lines, others]``; -1 for none."""
        row, pattern = row.cpu(), pattern.cpu()
        edges, lookups, tiles, patterns = [0], list[int](), list[int](), list[int]()
        run_edges, runs = [0], list[tuple[int, int, int]]()
        for rows, lookup in zip(row.tolist(), pattern.tolist(), strict=True):
            constant = sorted((value, other) for other, value in enumerate(rows) if value >= 0)
            for value, other in constant:
                at = len(tiles)
                if len(runs) == run_edges[-1] or runs[-1][0] != value:
                    runs.append((value, at, at))
                runs[-1] = (value, runs[-1][1], at + 1)
                tiles.append(other)
                patterns.append(-1)
            run_edges.append(len(runs))
            lookups.append(len(tiles))
            looked_up = [(other, value) for other, value in enumerate(lookup) if value >= 0]
            tiles += [other for other, _ in looked_up]
            patterns += [value for _, value in looked_up]
            edges.append(len(tiles))
        starts, runs = torch.tensor(edges), runs or [(0, 0, 0)]  # a kernel is given no empty tensor
        order = starts.diff().argsort(descending=True, stable=True)
        columns = [torch.tensor(column) for column in zip(*runs, strict=True)]
        lists = (starts, *(torch.tensor(x) for x in (lookups, tiles, patterns, run_edges)), *columns, order)
        return cls(*(x.int() for x in lists))

    def to(self, device: torch.device) -> TileList:
        """The same on a device."""
        return TileList(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class EqualTiles:
    """The look-ups of a plan, equal ones beside each other, cut into items of :data:`ITEM_TILES` at most. All int32.

    Attributes:
        pattern: Pattern of each item, ``[items]``.
        start: First look-up of each item, ``[items]``.
        stop: Look-up after its last one, ``[items]``.
        line: Tile of queries of each look-up, ``[look-ups]``.
        column: Tile of keys of each look-up, ``[look-ups]``.
    """

    pattern: Tensor
    start: Tensor
    stop: Tensor
    line: Tensor
    column: Tensor

    @classmethod
    def of(cls, lookup: Tensor) -> EqualTiles:
        """From the pattern of each look-up, ``[lines, columns]``; -1 for other tiles."""
        places = (lookup >= 0).nonzero().cpu()
        patterns = lookup.cpu()[places[:, 0], places[:, 1]]
        order = patterns.argsort(stable=True)
        items, first = list[tuple[int, int, int]](), 0
        for number, equal in groupby(patterns[order].tolist()):
            count = sum(1 for _ in equal)
            parts = -(-count // ITEM_TILES)
            edges = [first + count * part // parts for part in range(parts + 1)]
            items += [(number, start, stop) for start, stop in pairwise(edges)]
            first += count
        columns = (*torch.tensor(items).view(-1, 3).t(), *places[order].t())
        return cls(*(x.int().contiguous().to(lookup.device) for x in columns))


@dataclass(frozen=True)
class TilePlan:
    """The classed tiles of a sequence.

    Attributes:
        queries: Queries of a tile.
        keys: Keys of a tile.
        steps: Steps of the sequence; those of the last tiles beyond it are copies of the last query, and masked keys.
        row: Row of the bias table of each constant tile, int32 ``[query tiles, key tiles]``; -1 for others.
        lookup: Pattern of each look-up, int32 of the same shape; -1 for others.
        patterns: Row of the bias table for each pair of a look-up, uint8 ``[patterns, queries, keys]``.
        masked_row: The row that forbids a pair.
    """

    queries: int
    keys: int
    steps: int
    row: Tensor
    lookup: Tensor
    patterns: Tensor
    masked_row: int

    @classmethod
    @torch.inference_mode(False)  # plans are kept and must serve training too, wherever they were first made
    @torch.no_grad()
    def of(cls, module: RelativePosition, positions: StepPositions, queries: int, keys: int) -> TilePlan:
        """The plan of a sequence after ``module``, on the device of ``positions``.

        Rows of ``queries x steps`` pairs exist at once, and those of all look-ups together.
        """
        steps, device = positions.steps, positions.segment.device
        lines, columns = -(-steps // queries), -(-steps // keys)
        query = torch.arange(lines * queries, device=device).clamp(max=steps - 1)
        key = torch.arange(columns * keys, device=device).clamp(max=steps - 1)
        lowest, highest = [], []
        for line in query.view(lines, queries):
            rows = module.rows(positions, line, key).view(queries, columns, keys)
            lowest.append(rows.amin((0, 2)))
            highest.append(rows.amax((0, 2)))
        low, high = torch.stack(lowest).cpu(), torch.stack(highest).cpu()
        seen = low != module.masked_row  # the highest of all rows
        varied = seen & (low != high)
        if steps % keys:
            varied[:, -1] = seen[:, -1]  # keys after the last step are masked
        row = torch.where(seen & ~varied, low, -1).int()
        lookup, patterns = cls._patterns(module, positions, varied, query.view(lines, queries), key.view(columns, keys))
        return cls(queries, keys, steps, row.to(device), lookup.to(device), patterns, module.masked_row)

    @staticmethod
    def _patterns(
        module: RelativePosition, positions: StepPositions, varied: Tensor, query: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pattern of each look-up ``[lines, columns]``, and all patterns, each kept once."""
        steps, (lines, queries), (columns, keys) = positions.steps, query.shape, key.shape
        found = [torch.empty(0, queries, keys, dtype=torch.uint8, device=key.device)]
        for line in range(lines):
            tiles = varied[line].nonzero().flatten().to(key.device)
            rows = module.rows(positions, query[line], key[tiles].flatten()).view(queries, len(tiles), keys)
            beyond = torch.arange(columns * keys, device=key.device).view(columns, keys)[tiles] >= steps
            found.append(rows.masked_fill(beyond, module.masked_row).transpose(0, 1).to(torch.uint8))
        everything = torch.cat(found).cpu().contiguous()
        numbers, first, known = list[int](), list[int](), dict[bytes, int]()
        for at, tile in enumerate(everything.numpy()):
            content = tile.tobytes()
            if content not in known:
                known[content] = len(known)
                first.append(at)
            numbers.append(known[content])
        lookup = torch.full(varied.shape, -1, dtype=torch.int32)
        lookup[varied] = torch.tensor(numbers, dtype=torch.int32)
        return lookup, everything[torch.tensor(first, dtype=torch.int64)].to(key.device)

    @cached_property
    @torch.inference_mode(False)
    def by_query(self) -> TileList:
        """For each tile of queries, the tiles of keys that it sees."""
        return TileList.of(self.row, self.lookup).to(self.row.device)

    @cached_property
    @torch.inference_mode(False)
    def by_key(self) -> TileList:
        """For each tile of keys, the tiles of queries that see it."""
        return TileList.of(self.row.t(), self.lookup.t()).to(self.row.device)

    @cached_property
    @torch.inference_mode(False)
    def equal_lookups(self) -> EqualTiles:
        """The look-ups, equal ones beside each other."""
        return EqualTiles.of(self.lookup)

    def biases(self, table: Tensor, by_key: bool = False) -> Tensor:
        """The bias of each pair of each pattern from ``table [H, R + 1]``, in the table's type.

        Returns:
            ``[H, patterns, queries, keys]``; by key, ``[H, patterns, keys, queries]``.
        """
        rows = self._rows_by_key if by_key else self._rows_by_query
        shape = (self.keys, self.queries) if by_key else (self.queries, self.keys)
        return table.index_select(1, rows).view(len(table), -1, *shape)

    @cached_property
    @torch.inference_mode(False)
    def _rows_by_query(self) -> Tensor:
        return self.patterns.flatten().int()

    @cached_property
    @torch.inference_mode(False)
    def _rows_by_key(self) -> Tensor:
        return self.patterns.transpose(1, 2).flatten().int()

    @cached_property
    @torch.inference_mode(False)
    def rows_of_patterns(self) -> tuple[Tensor, Tensor]:
        """The rows that each pattern holds, without the masked one: where each begins ``[patterns + 1]``, and all."""
        edges, rows = [0], list[int]()
        for pattern in self.patterns.cpu():
            rows += [row for row in pattern.unique().tolist() if row != self.masked_row]
            edges.append(len(rows))
        both = (torch.tensor(x, dtype=torch.int32, device=self.row.device) for x in (edges, rows or [0]))
        return next(both), next(both)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each class in all tiles."""
        constant, lookup = (float((x >= 0).float().mean()) for x in (self.row, self.lookup))
        return {"skipped": 1 - constant - lookup, "constant": constant, "look-up": lookup}
