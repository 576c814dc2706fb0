"""GPUs of a machine are taken by one run at a time. The device files are made up; the locks are real."""

from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.training.devices import reserve_gpus


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The device folder of a machine with two GPUs."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    return tmp_path / "dev"


def test_a_second_run_gets_the_other_gpu_and_a_third_is_refused_with_the_names_of_the_others(
    machine: Path, tmp_path: Path
):
    first = reserve_gpus("one", 1, {}, "bf16", tmp_path, machine)
    second = reserve_gpus("two", 1, {}, "bf16", tmp_path, machine)
    assert (first.names, second.names) == (["0"], ["1"])
    with pytest.raises(UserError, match=r"three needs 1 of the GPUs 0, 1, and 0 are free.*GPU 0 by run one, process"):
        reserve_gpus("three", 1, {}, "bf16", tmp_path, machine)
    first.release()
    with pytest.raises(UserError, match="1 are free; in use: GPU 1 by run two"):
        reserve_gpus("three", 2, {}, "bf16", tmp_path, machine)
    assert reserve_gpus("three", 1, {}, "bf16", tmp_path, machine).names == ["0"], (
        "a refused run must not keep what it had taken"
    )


def test_only_visible_gpus_are_reserved(machine: Path, tmp_path: Path):
    assert reserve_gpus("one", 1, {"CUDA_VISIBLE_DEVICES": "1"}, "bf16", tmp_path, machine).names == ["1"]
    assert reserve_gpus("two", 1, {"CUDA_VISIBLE_DEVICES": ""}, "bf16", tmp_path, machine).names is None
    with pytest.raises(UserError, match="one has 2 ranks and needs as many GPUs, but sees 1; set ranks to 1"):
        reserve_gpus("one", 2, {"CUDA_VISIBLE_DEVICES": "0"}, "bf16", tmp_path, machine)


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"])
def test_gpus_that_a_scheduler_assigns_are_not_locked(machine: Path, tmp_path: Path, variable: str):
    assert reserve_gpus("one", 9, {variable: "7"}, "bf16", tmp_path, machine).names is None
    assert not list(tmp_path.glob("*.lock"))


def test_a_machine_without_gpus_has_nothing_to_share(tmp_path: Path):
    (tmp_path / "nvidiactl").touch()
    assert reserve_gpus("one", 2, {"CUDA_VISIBLE_DEVICES": "0"}, "bf16", tmp_path, tmp_path).names is None


def test_the_miniature_on_a_laptop_with_one_gpu_uses_the_cpu(machine: Path, tmp_path: Path, capsys):
    assert reserve_gpus("demo", 3, {}, "fp32", tmp_path, machine).names == []
    assert "trains on the CPU" in capsys.readouterr().err
