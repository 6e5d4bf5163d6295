import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agentrl.config.schema import ModelConfig
from agentrl.model.head import HeadGradient, default_chunk, token_logprobs
from agentrl.model.weights import add_lora, effective_weight
from tests.agentrl.helpers import tiny_policy


def random_case(n: int, d: int, v: int, *, seed: int = 0, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, d, generator=g, dtype=dtype, requires_grad=True)
    targets = torch.randint(v, (n,), generator=g)
    upstream = torch.randn(n, generator=g, dtype=dtype)
    upstream[torch.rand(n, generator=g) < 0.3] = 0.0
    return hidden, weight, targets, upstream


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = hidden @ weight.t() / temperature
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def test_token_logprobs_of_two_equal_logits_is_log_one_half() -> None:
    hidden, weight = torch.ones(1, 1), torch.ones(2, 1)
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([1]), with_entropy=True)
    assert logprobs.item() == pytest.approx(-0.693147, abs=1e-6)
    assert entropy is not None
    assert entropy.item() == pytest.approx(0.693147, abs=1e-6)


def test_token_logprobs_at_temperature_two_halves_the_logits() -> None:
    # logits 0 and 2 log 3, halved: probabilities 1/4 and 3/4
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [2 * math.log(3)]])
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([1]), temperature=2.0, with_entropy=True)
    assert logprobs.item() == pytest.approx(math.log(0.75))
    assert entropy is not None
    assert entropy.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert token_logprobs(hidden, weight, torch.tensor([1]))[1] is None  # unless asked for


@pytest.mark.parametrize(
    ("device", "vocabulary", "chunk"),
    [
        ("cpu", 1, 2048), ("cpu", 4096, 1024), ("cpu", 1 << 22, 192),
        ("cuda", 1, 16384), ("cuda", 1 << 16, 4096), ("cuda", 1 << 28, 1024),
    ],
)  # fmt: skip
def test_default_chunk_is_a_budget_of_logits_between_two_limits(device: str, vocabulary: int, chunk: int) -> None:
    assert default_chunk(vocabulary, torch.device(device)) == chunk


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(2, 17), st.integers(1, 50), st.floats(0.3, 3.0))
def test_token_logprobs_in_any_chunks_equals_plain_autograd(n: int, d: int, v: int, chunk: int, t: float) -> None:
    hidden, weight, targets, upstream = random_case(n, d, v, seed=n * 100 + v)
    expected = plain(hidden, weight, targets, t)
    wanted = torch.autograd.grad((expected * upstream).sum(), [hidden, weight])
    logprobs, _ = token_logprobs(hidden, weight, targets, temperature=t, chunk=chunk)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(torch.autograd.grad((logprobs * upstream).sum(), [hidden, weight]), wanted)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("parts", [1, 3])
def test_energy_in_fp32_equals_autograds_to_1e_5(chunk: int, parts: int) -> None:
    hidden, weight, targets, upstream = random_case(300, 32, 500, dtype=torch.float32)
    (gradient,) = torch.autograd.grad((plain(hidden, weight, targets, 1.0) * upstream).sum(), [weight])
    sink = HeadGradient()
    for h, t, u in zip(hidden.chunk(parts), targets.chunk(parts), upstream.chunk(parts), strict=True):
        logprobs, _ = token_logprobs(h, weight, t, chunk=chunk, sink=sink)
        (logprobs * u).sum().backward()
    assert weight.grad is None  # the sink took it
    assert float(sink.energy()) == pytest.approx(float(gradient.square().sum()), rel=1e-5)
    sink.merge(weight)  # type: ignore[arg-type]
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)


def test_energy_of_a_tied_head_counts_only_the_heads_share() -> None:
    g = torch.Generator().manual_seed(1)
    embedding = torch.nn.Parameter(torch.randn(11, 5, generator=g, dtype=torch.float64))
    ids, targets = torch.randint(11, (20,), generator=g), torch.randint(11, (20,), generator=g)
    sink = HeadGradient()
    hidden = embedding[ids].tanh()
    token_logprobs(hidden, embedding, targets, sink=sink)[0].sum().backward()
    detached = embedding.detach().clone().requires_grad_()
    plain(embedding.detach()[ids].tanh(), detached, targets, 1.0).sum().backward()
    assert detached.grad is not None
    assert float(sink.energy()) == pytest.approx(float(detached.grad.square().sum()))
    sink.merge(embedding)
    whole = embedding.detach().clone().requires_grad_()
    plain(whole[ids].tanh(), whole, targets, 1.0).sum().backward()
    torch.testing.assert_close(embedding.grad, whole.grad)


def test_energy_of_a_frozen_head_is_still_measured_and_leaves_no_gradient() -> None:
    hidden, weight, targets, upstream = random_case(30, 6, 9)
    frozen = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    sink = HeadGradient()
    (token_logprobs(hidden, frozen, targets, sink=sink)[0] * upstream).sum().backward()
    (gradient,) = torch.autograd.grad((plain(hidden, weight, targets, 1.0) * upstream).sum(), [weight])
    assert float(sink.energy()) == pytest.approx(float(gradient.square().sum()))
    sink.merge(frozen)
    assert frozen.grad is None


def test_closed_form_of_the_head_gradient_is_the_sum_of_rank_one_errors() -> None:
    # paper, Proposition 1: G = sum_i E_i h_i^T with E_i = u_i (e_a - pi)
    hidden, weight, targets, upstream = random_case(12, 4, 6)
    pi = (hidden @ weight.t()).softmax(-1)
    errors = upstream[:, None] * (torch.nn.functional.one_hot(targets, 6) - pi)
    sink = HeadGradient()
    (token_logprobs(hidden, weight, targets, sink=sink)[0] * upstream).sum().backward()
    torch.testing.assert_close(sink.buffer, (errors.t() @ hidden).detach())


def test_bfloat16_logprobs_and_energy_stay_close_to_float32() -> None:
    hidden, weight, targets, upstream = random_case(200, 32, 100, dtype=torch.float32)
    energies = []
    for dtype in (torch.float32, torch.bfloat16):
        sink = HeadGradient()
        h = hidden.detach().to(dtype).requires_grad_()
        logprobs, _ = token_logprobs(h, weight.detach().to(dtype), targets, sink=sink, chunk=64)
        assert logprobs.dtype == torch.float32
        (logprobs * upstream).sum().backward()
        energies.append(float(sink.energy()))
    assert energies[1] == pytest.approx(energies[0], rel=0.02)


@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_entropy_of_all_tokens_comes_out_of_backward(chunk: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets, upstream = random_case(20, 4, 30, dtype=dtype)
    assert not upstream.all(), "tokens without a gradient count too"
    logprobs = (hidden @ weight.t() / 0.7).log_softmax(-1).detach()
    sink = HeadGradient(with_entropy=True)
    for _ in range(2):
        (
            token_logprobs(hidden, weight, targets, temperature=0.7, chunk=chunk, sink=sink)[0] * upstream
        ).sum().backward()
    assert sink.entropy is not None
    assert float(sink.entropy) == pytest.approx(-2 * float((logprobs.exp() * logprobs).sum()), rel=tolerance)
    gradient = torch.autograd.grad((plain(hidden, weight, targets, 0.7) * upstream).sum(), [weight])[0]
    torch.testing.assert_close(sink.buffer, 2 * gradient)
    sink.clear()
    assert float(sink.entropy) == 0.0
    unasked = HeadGradient()
    unasked.clear()
    assert unasked.entropy is None


def test_logits_of_one_chunk_are_not_computed_again_and_a_second_backward_still_works() -> None:
    hidden, weight, targets, upstream = random_case(20, 4, 6)
    (wanted,) = torch.autograd.grad((plain(hidden, weight, targets, 0.7) * upstream).sum(), [hidden])
    loss = (token_logprobs(hidden, weight, targets, temperature=0.7, chunk=64)[0] * upstream).sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(loss, [hidden], retain_graph=True)
        torch.testing.assert_close(gradient, wanted)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("chunk", "frozen", "products"),
    [
        (6, False, [2, 3]),  # gradients of hidden states and weight; the second time the logits too
        (6, True, [1, 2]),
        (3, False, [6, 6]),  # all three for either chunk
        (3, True, [4, 4]),
    ],
)
def test_backward_multiplies_only_for_what_it_lacks(chunk: int, frozen: bool, products: list[int]) -> None:
    hidden, weight, targets, _ = random_case(6, 4, 5)
    weight.requires_grad_(not frozen)
    loss = token_logprobs(hidden, weight, targets, chunk=chunk)[0].sum()
    for expected in products:
        with Products() as counted:
            loss.backward(retain_graph=True)
        assert counted.count == expected


def test_tokens_without_a_gradient_cost_nothing_unless_their_entropy_is_wanted() -> None:
    hidden, weight, targets, _ = random_case(6, 4, 5)
    for sink, products in ((HeadGradient(), 3), (HeadGradient(with_entropy=True), 6)):
        loss = token_logprobs(hidden, weight, targets, chunk=3, sink=sink)[0][::2].sum()
        with Products() as counted:
            loss.backward()
        assert counted.count == products  # logits and both gradients of one chunk or of two


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [([6.0, -1.0, 0.0], 4.5), ([0.0, -1.0, 0.0], 2.0), ([0.0, 0.0, 0.0], 0.0)],
)
def test_largest_factor_is_that_of_lemma_2_over_tokens_with_a_gradient(gradient: list[float], expected: float) -> None:
    # A^2 ||onehot - probs||^2 ||hidden||^2: 9 * (2 / 16) * 4 with probabilities 1/4 and 3/4, 1 * (2 / 4) * 4 with 1/2
    hidden = torch.tensor([[0.0, 2.0], [2.0, 0.0], [9.0, 9.0]], requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [0.0, math.log(3) / 2]])
    sink, g = HeadGradient(with_factors=True), torch.tensor(gradient)
    (token_logprobs(hidden, weight, torch.tensor([1, 0, 0]), sink=sink)[0] * g).sum().backward()
    assert sink.largest_factor(g, torch.tensor([3.0, 1.0, 9.0])).item() == pytest.approx(expected)
    assert sink.energies == []
    assert HeadGradient().energies is None  # unless asked for


def test_buffer_of_a_process_without_tokens_is_zeros_in_the_weights_shape() -> None:
    sink, weight = HeadGradient(), torch.ones(3, 2, dtype=torch.bfloat16)
    assert sink.energy().tolist() == 0.0
    buffer = sink.ensure(weight)
    assert buffer.dtype == torch.float32
    assert buffer.tolist() == [[0.0, 0.0]] * 3
    buffer.fill_(2.0)
    assert sink.ensure(weight) is buffer
    assert sink.energy().tolist() == 24.0


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_scattered_buffer_lies_as_the_weight_does_and_its_energy_is_a_plain_number(mesh: DeviceMesh) -> None:
    weight = distribute_tensor(torch.zeros(3, 2), mesh, [Shard(0)])
    sink = HeadGradient()
    sink.buffer = torch.full((3, 2), 2.0)
    sink.scatter(weight)
    assert isinstance(sink.buffer, DTensor)
    assert sink.buffer.placements == weight.placements
    assert type(sink.energy()) is torch.Tensor
    assert sink.energy().tolist() == 24.0


def test_no_tokens_at_all_give_a_zero_gradient_to_the_hidden_states() -> None:
    hidden, weight, targets, _ = random_case(3, 4, 6)
    sink = HeadGradient()
    nothing = torch.zeros(0, dtype=torch.long)
    token_logprobs(hidden[nothing], weight, targets[nothing], sink=sink)[0].sum().backward()
    assert not hidden.grad.any()  # type: ignore[union-attr]
    assert float(sink.energy()) == 0.0


def test_energy_of_a_lora_head_is_that_of_its_effective_weight_and_the_factors_get_their_gradients() -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    module, _ = tiny_policy(dtype=torch.float64)
    add_lora(module, ModelConfig(lora_rank=3, lora_targets=["lm_head"]), seed=0)
    head = module.lm_head
    torch.nn.init.normal_(head.lora_B["default"].weight)
    hidden, _, targets, upstream = random_case(30, module.config.hidden_size, len(head.base_layer.weight))
    factors = [head.lora_A["default"].weight, head.lora_B["default"].weight]
    expected = torch.autograd.grad((_plain_logprobs(head(hidden), targets) * upstream).sum(), factors)
    effective = effective_weight(head)
    torch.testing.assert_close(hidden @ effective.t(), head(hidden))
    leaf = effective.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((_plain_logprobs(hidden @ leaf.t(), targets) * upstream).sum(), [leaf])
    sink = HeadGradient()
    (token_logprobs(hidden, effective.detach(), targets, sink=sink)[0] * upstream).sum().backward()
    assert float(sink.energy()) == pytest.approx(float(gradient.square().sum()))
    sink.merge(effective)
    assert head.base_layer.weight.grad is None
    for factor, wanted in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.grad, wanted)


def _plain_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
