"""Imports deepspeed and megatron-core, without their noise and with what a CPU needs.

Imported by the deepspeed engine's modules before anything else of these two packages.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

import torch

from triax.common.errors import UserError

_IS_CPU = not torch.cuda.is_available()
_NOISY_LOGGERS = ("DeepSpeed", "megatron", "torch.distributed.distributed_c10d")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what is printed, logged below a warning, or warned of, by the code within."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


# DeepSpeed looks for devices when it is imported, and warns if it isn't told what to find.
os.environ.setdefault("DS_ACCELERATOR", "cpu" if _IS_CPU else "cuda")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
# Their imports ask torch for CUDA's compiler; it warns where that is and no GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
try:
    with silence():
        import deepspeed as deepspeed
        import deepspeed.ops
        import deepspeed.pipe
        import megatron.core.tensor_parallel  # noqa: F401
        from megatron.core import parallel_state as parallel_state
except ImportError as error:
    raise UserError(
        f'parallel.engine = "deepspeed" needs packages that are not installed ({error}); '
        '`pip install "triax[deepspeed]"` adds them'
    ) from error

# DeepSpeed and megatron-core call collectives by names that torch 2.13 has renamed.
warnings.filterwarnings(
    "ignore", message=".*`torch.distributed.*is deprecated", category=FutureWarning
)
for _name in _NOISY_LOGGERS:
    logging.getLogger(_name).setLevel(logging.ERROR)

if _IS_CPU:
    # A collective over shared memory, which DeepSpeed would compile when it starts.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Megatron-core makes the results of its messages on "the current CUDA device". Without CUDA
    # nobody else has a use for the answer.
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
