"""The paper's own experiment at full size: six data sets of 1e11 rows, two of 5e11 and 1e12.

1 % samples of 1e9 to 1e10 rows over 512 machines, streamed. `paper.py:1e11` are the six sets of
1e11 rows, `paper.py:all` the two that the paper also has at 5e11 and 1e12. 1e9 sampled rows take
about 40 minutes and 1.5 GB on one core (scaled up from 1e7 rows, 24 s). Started again in the same
folder, a run goes on behind the data sets that are finished.
"""

from experiments.common import to_config_dict
from experiments.ndv.published import PROFILES
from experiments.ndv.settings import BytesConfig, MachinesConfig, RunConfig

VERB = "reproduce"
KINDS = ("all", "1e11")


def get_config(arg: str = "all"):
    if arg not in KINDS:
        raise ValueError(f"paper.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    return to_config_dict(
        RunConfig(
            machines=MachinesConfig(
                populations=tuple(PROFILES) if arg == "1e11" else ("poi-50", "zipf-2"),
                repeats=(10,) if arg == "1e11" else (10, 50, 100),
            ),
            bytes=BytesConfig(
                populations=("poi-50", "poi-200", "zipf-1.5"),
                block_rows=1e8,
                machines=64,
                hll_precisions=(8, 10, 12, 14, 16),
                register_precisions=(6, 8, 10, 12, 14, 16),
                bottom_k_sizes=(64, 256, 1024, 4096, 16384),
            ),
            benchmark=None,
        )
    )
