"""Makes the torch files of tests/checkpoints: `python tests/golden/make_torch_zip.py`.

Needs torch 2.13.0.

Writes torch_zip.pt (every storage type, views, shared storages, a parameter, a trainer's optimizer
state with NumPy scalars), torch_zip.npz (the same tensors as NumPy sees them), torch_legacy.pt (the
older, non-zip form) and torch_script.pt (a TorchScript archive).
"""

import collections
import warnings
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def tensors() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((4, 6), dtype=np.float32))
    numbers = torch.from_numpy(rng.integers(-100, 100, (3, 5)))
    made = {
        f"cast.{str(dtype).removeprefix('torch.')}": (base * 50).to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    made |= {
        f"cast.{str(dtype).removeprefix('torch.')}": numbers.abs().to(dtype)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    }
    return made | {
        "bool": base > 0,
        "scalar": torch.tensor(2.6593),
        "empty": torch.zeros(0, 3),
        "base": base,
        "transposed": base.t(),
        "strided": base[1::2, ::3],
        "row": base[2],
        "expanded": base[:1].expand(4, 6),
        "parameter": torch.nn.Parameter(base.clone()),
    }


def main() -> None:
    made = tensors()
    state_dict = collections.OrderedDict(made)
    state_dict._metadata = collections.OrderedDict(version=1)
    trainer = {
        "epoch": 3,
        "step": 1_000_000_000_000,
        "name": "饺子",
        "state_dict": state_dict,
        "optimizer": {
            "state": {0: {"step": torch.tensor(5.0), "exp_avg": made["row"]}},
            "param_groups": [
                {
                    "lr": np.float64(2.5e-5),
                    "steps": np.int64(7),
                    "half": np.float32(0.5),
                    "flag": np.bool_(True),
                    "betas": (0.9, 0.98),
                    "amsgrad": False,
                    "foreach": None,
                    "size": torch.Size([2, 3]),
                    "params": [0, 1],
                }
            ],
        },
    }
    torch.save(trainer, HERE / "torch_zip.pt")
    arrays = {
        name: (t.detach().float() if t.dtype == torch.bfloat16 else t.detach()).numpy()
        for name, t in made.items()
    }
    np.savez_compressed(HERE / "torch_zip.npz", torch_version=torch.__version__, **arrays)
    torch.save({"w": made["row"]}, HERE / "torch_legacy.pt", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(HERE / "torch_script.pt")


if __name__ == "__main__":
    main()
