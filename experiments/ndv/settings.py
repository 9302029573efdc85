"""The settings of `experiments.ndv.reproduce`."""

import dataclasses

from experiments.ndv.published import PROFILES, make_population
from experiments.ndv.real_columns import ColumnsConfig
from jaxlab.ndv.estimators import DEVICE_ESTIMATORS, ESTIMATORS
from jaxlab.ndv.hll import MAX_PRECISION, MIN_PRECISION
from jaxlab.ndv.sampling import check_rate
from jaxlab.ndv.table import DEFAULT_BUDGET_BYTES

# Of the table all but what only repeats the slips of others, and the naive one.
COMPARED = tuple(
    name for name in DEVICE_ESTIMATORS
    if name != "SCALE" and not name.endswith(("_COMPAT", "_CPP", "_NB"))
)  # fmt: skip


def _check_precisions(name: str, precisions: tuple[int, ...]) -> None:
    for precision in precisions:
        if not MIN_PRECISION <= precision <= MAX_PRECISION:
            raise ValueError(
                f"{name} has {precision}; wanted log2 of the number of registers, from "
                f"{MIN_PRECISION} to {MAX_PRECISION}"
            )


@dataclasses.dataclass(frozen=True)
class ExpectedConfig:
    """The tables of the paper's data sets, from expected profiles: exact, without drawing a row.

    Attributes:
      populations: data sets of 1e11 rows, by the names of the paper.
      rate: sampling rate; the published numbers are at 0.01.
    """

    populations: tuple[str, ...] = tuple(PROFILES)
    rate: float = 0.01

    def __post_init__(self):
        """Raises ValueError for an unknown data set or a rate out of range."""
        check_rate(self.rate)
        if unknown := [name for name in self.populations if name not in PROFILES]:
            raise ValueError(f"populations has {unknown}; published are {', '.join(PROFILES)}")


@dataclasses.dataclass(frozen=True)
class MachinesConfig:
    """The paper's experiment: samples spread over machines, summed up by sketches.

    Attributes:
      populations: data sets, `poi-MEAN` or `zipf-EXPONENT`.
      block_rows: rows of a block, 1e10 in the paper.
      repeats: numbers of blocks; 10, 50 and 100 in the paper.
      machines: over which the sampled rows are spread at random; 512 in the paper.
      rate: sampling rate.
      precision: log2 of the registers of the paper's sketches; 16 in the paper.
      budget_bytes: what a machine may send for the column in our message.
      chunk_rows: sampled rows in memory at a time.
      seed: of all draws.
    """

    populations: tuple[str, ...] = ("poi-50", "zipf-2")
    block_rows: float = 1e10
    repeats: tuple[int, ...] = (10,)
    machines: int = 512
    rate: float = 0.01
    precision: int = 16
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    chunk_rows: int = 4_000_000
    seed: int = 0

    def __post_init__(self):
        """Raises ValueError for a data set that cannot be made or a number out of range."""
        check_rate(self.rate)
        for name in self.populations:
            make_population(name, 100, 1)
        numbers = (self.block_rows, *self.repeats, self.machines, self.chunk_rows)
        if min(numbers) < 1 or not self.repeats:
            raise ValueError(
                f"block_rows={self.block_rows}, repeats={self.repeats}, machines={self.machines}, "
                f"chunk_rows={self.chunk_rows}; wanted at least 1 of each"
            )
        _check_precisions("precision", (self.precision,))


@dataclasses.dataclass(frozen=True)
class BytesConfig:
    """Error against bytes: how well f1 and the answer survive being sent.

    Attributes:
      populations: data sets, `poi-MEAN` or `zipf-EXPONENT`.
      block_rows: rows of each, before rounding.
      machines: over which the rows are spread.
      rate: sampling rate.
      trials: samples, each with a hash of its own; errors are root mean squares over them.
      hll_precisions: log2 of the registers of the sketches of HyperLogLog.
      register_precisions: log2 of the registers with counts.
      bottom_k_sizes: hashes that bottom-k retains.
      budgets: bytes of our messages, a machine.
      seed: of all draws.
    """

    populations: tuple[str, ...] = ("poi-50", "zipf-1.5")
    block_rows: float = 1e7
    machines: int = 16
    rate: float = 0.01
    trials: int = 20
    hll_precisions: tuple[int, ...] = (8, 10, 12, 14)
    register_precisions: tuple[int, ...] = (6, 8, 10, 12, 14)
    bottom_k_sizes: tuple[int, ...] = (64, 256, 1024, 4096)
    budgets: tuple[int, ...] = (1024, 4096, 16384, 65536)
    seed: int = 0

    def __post_init__(self):
        """Raises ValueError for a data set that cannot be made or a number out of range."""
        check_rate(self.rate)
        for name in self.populations:
            make_population(name, 100, 1)
        _check_precisions("hll_precisions", self.hll_precisions)
        _check_precisions("register_precisions", self.register_precisions)
        if min(self.block_rows, self.machines, self.trials) < 1:
            raise ValueError(
                f"block_rows={self.block_rows}, machines={self.machines}, trials={self.trials}; "
                "wanted at least 1 of each"
            )
        if min(self.bottom_k_sizes, default=2) < 2 or min(self.budgets, default=256) < 256:
            raise ValueError(
                f"bottom_k_sizes={self.bottom_k_sizes}, budgets={self.budgets}; wanted sizes of at "
                "least 2 and budgets of at least 256 bytes"
            )


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """How far the estimators are off on real columns.

    Attributes:
      columns: the tables whose columns are sampled.
      rates: sampling rates.
      report_rate: the one of which `results.json` has the plain keys and the long table is printed.
      num_seeds: samples of every column at every rate.
      estimators: names of the estimators that are compared, and that the oracle may choose from.
      seed: of all samples.
    """

    columns: ColumnsConfig = ColumnsConfig()
    rates: tuple[float, ...] = (0.001, 0.01, 0.05, 0.1)
    report_rate: float = 0.01
    num_seeds: int = 5
    estimators: tuple[str, ...] = COMPARED
    seed: int = 0

    def __post_init__(self):
        """Raises ValueError for an unknown estimator or a number out of range."""
        for rate in self.rates:
            check_rate(rate)
        if self.report_rate not in self.rates:
            raise ValueError(f"report_rate={self.report_rate} is not one of rates={self.rates}")
        if self.num_seeds < 1 or not self.estimators:
            raise ValueError(
                f"num_seeds={self.num_seeds}, {len(self.estimators)} estimators; wanted at least 1"
            )
        if unknown := [name for name in self.estimators if name not in ESTIMATORS]:
            raise ValueError(f"estimators has {unknown}; there are {', '.join(ESTIMATORS)}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to reproduce; a part that is None is left out.

    Attributes:
      expected: tables of the paper's data sets, from expected profiles.
      machines: the paper's experiment on regenerated data.
      bytes: error against bytes.
      benchmark: estimators on real columns.
    """

    expected: ExpectedConfig | None = ExpectedConfig()
    machines: MachinesConfig | None = MachinesConfig()
    bytes: BytesConfig | None = BytesConfig()
    benchmark: BenchmarkConfig | None = BenchmarkConfig()

    def __post_init__(self):
        """Raises ValueError if nothing is left."""
        if not any((self.expected, self.machines, self.bytes, self.benchmark)):
            raise ValueError("every part is None; wanted at least one to reproduce")
