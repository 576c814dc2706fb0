"""The attention benchmark in a tiny form, its check, and the tables that only a GPU fills."""

import re
import sys

import pytest
import torch

from benchmarks import attention
from benchmarks.attention_candidates import IMAGE_TOKENS, ON_CPU, candidate, conversation, image_spans
from benchmarks.measuring import GRAPH, Sample, Timer, attention_library, peak_memory, reset_peak_memory
from model.documents import IMAGE, TEXT
from model.fused_attention import INTERPRETED

TINY = ["--heads", "2", "--width", "16", "--no-memory", "--repeats", "2", "--cases", "1x40", "2x30"]


@pytest.fixture
def arguments(monkeypatch):
    """The arguments that a command line gives."""

    def parse(*words: str):
        monkeypatch.setattr(sys, "argv", ["attention", *TINY, "--device", "cpu", *words])
        return attention.parse()

    return parse


def test_the_table_has_a_row_of_times_and_ratios_for_every_case(arguments, capsys):
    assert attention.table(arguments())
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0][3:] == [*ON_CPU, "mmca to dense", "mmca to causal", "dattn to causal"]
    assert [row[:3] for row in rows[2:]] == [["1", "40", "296"], ["2", "30", "542"]]
    for row in rows[2:]:
        assert all(float(cell) > 0 for cell in row[3:7]) and all(cell.endswith(" x") for cell in row[7:])


def test_the_check_finds_a_wrong_back_end(arguments, capsys, monkeypatch):
    assert attention.check(arguments())
    assert capsys.readouterr().out.count("  ok") == 3 * (1 + INTERPRETED)
    right = attention.results

    def wrong_in_float32(tensors, *rest):
        return [x * (1.01 if x.dtype == torch.float32 else 1) for x in right(tensors, *rest)]

    monkeypatch.setattr(attention, "results", wrong_in_float32)
    assert not attention.check(arguments())
    assert "WRONG" in capsys.readouterr().out


def test_repetition_compares_bits(arguments, capsys, monkeypatch):
    assert attention.repetition(arguments("--deterministic"))
    assert capsys.readouterr().out.count("the same") == 2 * (len(ON_CPU) - 1)

    def noisy(name, modality, args):
        call = candidate(name, modality, args)
        inner = call.function
        call.function = lambda *tensors: tuple(x + torch.rand(()) * 1e-6 for x in inner(*tensors))
        return call

    monkeypatch.setattr(attention, "candidate", noisy)
    assert not attention.repetition(arguments("--deterministic"))
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_candidate_of_ours_that_does_not_run_fails_the_benchmark(arguments, capsys, monkeypatch):
    def broken(name, modality, args):
        if name == "mmca":
            raise RuntimeError("the launch failed")
        return candidate(name, modality, args)

    monkeypatch.setattr(attention, "candidate", broken)
    assert attention.table(arguments()) is False
    assert attention.repetition(arguments()) is False
    assert "the launch failed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ON_CPU)
def test_every_candidate_gives_gradients_of_the_shapes_of_its_inputs(arguments, name):
    call = candidate(name, conversation(1, 20), arguments())
    out, *gradients = call()
    assert out.shape == (1, IMAGE_TOKENS + 20, 2, 16)
    assert [x.shape for x in gradients] == [(1, 2, IMAGE_TOKENS + 20, 16)] * 3


def test_spans_without_text_are_the_images_before_each_row_of_text():
    modality = torch.tensor([TEXT, IMAGE, IMAGE, TEXT, TEXT, IMAGE, TEXT])
    spans, reads = image_spans(modality)
    assert spans[2:].tolist() == [[0, 0, 0, 0], [0, 2, 2, 3]]
    assert torch.equal(spans[0], spans[1]) and torch.equal(reads[0, :4], reads[1, :4])
    assert reads[:, 4:].tolist() == [[1, 1, 3], [4, 4, 4]]
    assert spans.dtype == reads.dtype == torch.int32


def test_kernels_are_named_by_their_library():
    names = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "cuDNN",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel": "flash",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "memory-efficient",
        "void gemm_kernel": "matrix products and a softmax",
    }
    assert {name: attention_library([name]) for name in names} == names


def test_tables_of_a_gpu_show_host_times_kernels_and_refusals(arguments, capsys):
    args = arguments()
    args.device = torch.device("cuda")
    kernels = ["_forward", "_backward_q", "_backward_kv"]
    samples = {"mmca": [Sample(1e-3, 2e-4)] * 2, "cudnn": [Sample(2e-3, 1e-4)] * 2}
    launched = {"mmca": kernels, "cudnn": ["cudnn_sdpa", "cudnn_sdpa"]}
    case = attention.Case(8, 2048, samples, launched, eager=["cudnn"])
    assert case.ratio("mmca", "cudnn") == 2.0 and case.ratio("mmca", "dense") is None
    attention.print_host_times([case], args)
    attention.print_kernels(case, args)
    text = capsys.readouterr().out
    assert "| mmca | 3 | see kernels | 1 x `_forward`; 1 x `_backward_q`; 1 x `_backward_kv` |" in text
    assert "| cudnn | 2 | cuDNN | 2 x `cudnn_sdpa` |" in text
    assert re.search(r"except of cudnn: ordinary calls", text) and "| 0.2 |" in text
    args.heads, args.groups, args.width, args.dtype = 32, 32, 128, torch.bfloat16
    assert attention.ratio_cell(case, "mmca", "cudnn", args) == "2.00 x (aim 1.0)"


def test_without_a_gpu_the_clock_is_the_only_time_and_memory_that_of_the_process():
    timer = Timer(lambda: None, torch.device("cpu"))
    assert timer.sample().host is None and timer.how != GRAPH
    before = reset_peak_memory(torch.device("cpu"))
    large = torch.ones(50_000_000)
    assert peak_memory(torch.device("cpu")) - before > 0.9 * large.nbytes
