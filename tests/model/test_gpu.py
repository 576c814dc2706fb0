"""What only a GPU can show: its kernels against the formula, and the model there against the model on the CPU."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from model.attention import attend
from model.attention_plan import SWITCHES, AttentionPlan
from model.chat import ChatSession
from model.configuration import VisualChatConfig
from model.documents import PAD
from model.modeling import VisualChatForConditionalGeneration
from tests.model.attention_cases import CASES, HEADS, oracle, parse_document_ids, parse_modality, tensors
from tests.model.conversations import ATTENTIONS, ONE_IMAGE, PICTURES, TEXT_ONLY, TWO_IMAGES, batch_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

# The largest relative error: a few times the rounding of the dtype.
CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
METHODS = [("sdpa", torch.float32), ("sdpa", torch.bfloat16), ("triton", torch.float16), ("triton", torch.bfloat16)]


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the error by that of the exact result; 0 if both are 0."""
    return float((actual.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-9))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("backend", "dtype"), METHODS)
@pytest.mark.parametrize("name", SWITCHES)
def test_kernels_compute_the_formula(name, backend, dtype, deterministic):
    switches = SWITCHES[name]
    torch.use_deterministic_algorithms(deterministic)
    try:
        for texts in CASES.values():
            for groups in (HEADS, HEADS // 2):
                compare(texts, groups, switches, backend, dtype)
    finally:
        torch.use_deterministic_algorithms(False)


def compare(texts: list[str], groups: int, switches: dict, backend: str, dtype: torch.dtype) -> None:
    modality, ids = parse_modality(texts), parse_document_ids(texts)
    real = (modality != PAD)[:, :, None, None]
    on_gpu = [x.detach().to("cuda", dtype).requires_grad_() for x in tensors(modality, groups)]
    exact = [x.detach().double().cpu().requires_grad_() for x in on_gpu]
    where = {"document_ids": None if ids is None else ids.cuda(), "backend": backend}
    out = (
        attend(None, *on_gpu, **switches, attention_plan=AttentionPlan.build(modality.cuda(), **switches, **where))[0]
        * real.cuda()
    )
    expected = oracle(*exact, modality, ids, **switches) * real
    sample = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad((out * sample.cuda()).sum(), on_gpu, allow_unused=True, materialize_grads=True)
    expected_gradients = torch.autograd.grad(
        (expected * sample).sum(), exact, allow_unused=True, materialize_grads=True
    )
    pairs = zip([out, *gradients], [expected, *expected_gradients], strict=True)
    errors = [relative_error(x, y) for x, y in pairs]
    assert max(errors) < CLOSE[dtype], (texts, groups, errors)


@pytest.fixture(params=ATTENTIONS)
def attention(request) -> str:
    return request.param


def load(folder: Path, attention: str) -> VisualChatForConditionalGeneration:
    config = VisualChatConfig.from_pretrained(folder, attention=attention)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config)


def test_the_model_has_the_losses_and_gradients_of_the_cpu(folder, processor, attention):
    inputs = batch_of(processor, TWO_IMAGES, ONE_IMAGE, TEXT_ONLY)
    results = {}
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        model = load(folder, attention).to(device, dtype)
        losses, _ = model.token_losses(**{name: value.to(device) for name, value in inputs.items()})
        losses.mean().backward()
        gradient = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])
        results[device, dtype] = losses.detach().double().cpu(), gradient
    exact = results.pop(("cpu", torch.float64))
    # The activations of a model with large weights are large, and bf16 keeps 8 bits of each.
    for (_, dtype), actual in results.items():
        errors = [relative_error(x, y) for x, y in zip(actual, exact, strict=True)]
        assert max(errors) < (1e-3 if dtype == torch.float32 else 0.3), (dtype, errors)


def test_a_chat_has_the_answers_of_the_cpu(folder, processor, attention):
    answers = {}
    for device in ("cpu", "cuda"):
        model = load(folder, attention).to(device).eval()
        # A random model may end its answer at once, and an empty answer is not a round.
        model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids
        session = ChatSession(model, processor)
        rounds = (("Hello?", []), ("What is this?", [PICTURES[0]]), ("Which of these?", [PICTURES[1], PICTURES[0]]))
        pictures = [(question, [Image.fromarray(x.transpose(1, 2, 0)) for x in shown]) for question, shown in rounds]
        answers[device] = [session.ask(question, shown, max_new_tokens=8) for question, shown in pictures]
    assert answers["cuda"] == answers["cpu"] and all(answers["cpu"])
