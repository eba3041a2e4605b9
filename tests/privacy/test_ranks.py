"""Several processes take the steps of one."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

SCRIPT = """
import os, sys, torch
from safetensors.torch import save_file
from torch import distributed, nn
from auditorch.privacy import dp_sgd
from auditorch.privacy.accounting import Budget
from auditorch.privacy.dp_sgd import DPConfig, dp_fine_tune

dp_sgd.epsilon = lambda noise, rate, steps, delta: Budget(1.0, delta, "prv", 1.0, 1.0, 1.1, noise, rate, steps)
if int(os.environ["WORLD_SIZE"]) > 1:
    distributed.init_process_group("gloo")
rank = int(os.environ["RANK"])
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(41, 6, generator=generator), torch.randint(3, (41,), generator=generator)
module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
torch.manual_seed(rank)  # each process begins elsewhere: the first one's weights count
if rank == 0:
    generator.manual_seed(1)
for parameter in module.parameters():
    nn.init.normal_(parameter, std=0.5, generator=generator)
config = DPConfig(noise_multiplier=float(sys.argv[2]), delta=1e-3, epochs=4, batch_size=11, clipping=sys.argv[3],
                  max_grad_norm=0.5, seed=7)
result = dp_fine_tune(module, x, y, config=config)
history = torch.tensor([[epoch.loss, epoch.accuracy] for epoch in result.history])
save_file({**result.module.state_dict(), "history": history}, f"{sys.argv[1]}-{rank}.safetensors")
if distributed.is_initialized():
    distributed.destroy_process_group()  # left to the end of Python, gloo's threads abort one process in ten
"""


def run(folder: Path, name: str, count: int, noise: float, clipping: str) -> Path:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    # Port 0: the store takes a free one itself. One that was looked for before may be taken by now.
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1"]
    launch += [str(script), str(folder / name)]
    done = subprocess.run([*launch, str(noise), clipping], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / name


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "clipping"), [(0.0, "flat"), (0.9, "adaptive"), (1.0, "per_layer")])
def test_two_processes_take_the_steps_of_one(noise: float, clipping: str, tmp_path: Path) -> None:
    """Same Poisson samples, noise once, same weights everywhere: with noise twice or none the weights would differ."""
    one = load_file(f"{run(tmp_path, 'one', 1, noise, clipping)}-0.safetensors")
    two = run(tmp_path, "two", 2, noise, clipping)
    first, second = (load_file(f"{two}-{rank}.safetensors") for rank in (0, 1))
    for key, value in one.items():
        assert_close(first[key], value, rtol=1e-4, atol=1e-5)
        assert_close(second[key], first[key], rtol=0, atol=0)
