"""Experts, one after another: the results of transformers' own loop over them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from executor.experts import EXPERTS_NAME, by_expert, register_experts
from executor.template import LayerTemplates
from planner.model import spec_from_config

HIDDEN = 32


def mixtral(width: int, hidden: int = HIDDEN) -> nn.Module:
    return MixtralExperts(MixtralConfig(hidden_size=hidden, intermediate_size=width, num_local_experts=8))


def qwen3(width: int) -> nn.Module:
    config = Qwen3MoeConfig(hidden_size=HIDDEN, moe_intermediate_size=width, num_experts=16)
    return Qwen3MoeExperts(config)


def routed(
    module: nn.Module, num_tokens: int, per_token: int, experts: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random weights; tokens, the experts each of them goes to, of the first `experts`, and their weights."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    scores = torch.rand(num_tokens, experts, device=device)
    weights, index = scores.softmax(dim=-1).topk(per_token, dim=-1)
    return torch.randn(num_tokens, module.down_proj.shape[1], device=device), index, weights


@pytest.mark.parametrize(("make", "per_token"), [(mixtral, 2), (qwen3, 4)])
@pytest.mark.parametrize("experts", [8, 5])
@pytest.mark.parametrize("num_tokens", [40, 300])
@torch.inference_mode()
def test_as_the_models_own_loop(make: type[nn.Module], per_token: int, experts: int, num_tokens: int) -> None:
    """Also where some experts are given nothing, and where products reach into the tokens of others."""
    module = make(24)
    module.config._experts_implementation = "eager"
    given = routed(module, num_tokens, per_token, experts)
    assert torch.allclose(by_expert(module, *given), module(*given), rtol=1e-4, atol=1e-6)


def test_a_models_experts_are_computed_here() -> None:
    """Where transformers would take its grouped products."""
    config = MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    spec = spec_from_config("tiny", {**config.to_dict(), "dtype": "float32"})
    model = LayerTemplates(spec, torch.device("cpu"), "eager").model
    assert model.config._experts_implementation == EXPERTS_NAME
    assert all(m.config is model.config for m in model.modules() if isinstance(m, MixtralExperts))


@pytest.mark.gpu
@torch.inference_mode()
def test_large_products_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as make each expert's product large go through it alone, and few do not; both as on the CPU."""
    module, calls = mixtral(2048, 1024), []
    register_experts(module)
    monkeypatch.setattr("executor.experts.by_expert", lambda *given: calls.append(1) or by_expert(*given))
    for num_tokens, num_calls in ((60, 0), (60_000, 1)):
        given = routed(module, num_tokens, 2, 8)
        module.to("cpu", torch.float32)
        expected = by_expert(module, *given)
        module.to("cuda", torch.bfloat16)
        hidden, index, weights = (x.cuda() for x in given)
        found = ALL_EXPERTS_FUNCTIONS[EXPERTS_NAME](module, hidden.bfloat16(), index, weights).float().cpu()
        assert len(calls) == num_calls
        assert (found - expected).norm() < 0.02 * expected.norm()
