"""Weight homes: every parameter arrives on its tier, bit by bit or quantised, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from executor import load_checkpoint
from executor.arena import Arena
from executor.checkpoint import Checkpoint, named_tensors
from executor.disk import DiskStore
from executor.weights import WeightHomes, tensor_views
from hwprofiles.errors import UserError
from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.quantize import dequantise, quantise
from planner.layout import PAGE_BYTES
from planner.ledger import LOADING_BYTES
from planner.model import ModelSpec, load_model
from planner.policy import TIERS
from planner.sizes import Sizes
from tests.executor.tiny import FAMILIES, make_plan, random_model, save

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@contextmanager
def homes_of(
    spec: ModelSpec, directory: Path, weights: str = "gcd", bits: int = 16, device: torch.device = CPU
) -> Iterator[WeightHomes]:
    """Empty homes with the tiers' letters repeated over all tensors."""
    plan = make_plan(spec, weights=weights, weight_bits=bits)
    sizes = Sizes(spec, plan.workload, plan.policy, plan.placement, "gpu")
    store = DiskStore(directory, threads=2)
    homes = WeightHomes(sizes, compute_device=device, emulated=device.type == "cpu", store=store)
    try:
        yield homes
    finally:
        homes.close()
        store.close()


def contents(homes: WeightHomes) -> dict[str, torch.Tensor]:
    """Every parameter by its full name as it lies in its home; uint8 where quantised."""
    sizes = homes.sizes
    found = {tensor.name: homes.end(tensor.name) for tensor in sizes.model.ends}
    for j, layer in enumerate(sizes.model.layers):
        for tier in TIERS:
            slab = sizes.slabs[j][tier]
            if not slab.nbytes:
                continue
            data = slab_bytes(homes, j) if tier == "disk" else homes.slab(j, tier)
            for name, view in tensor_views(data, slab, layer, homes.dtype).items():
                found[f"{sizes.model.layer_prefix}.{j}.{name}"] = view
    return found


def slab_bytes(homes: WeightHomes, j: int) -> torch.Tensor:
    """A layer's bytes on disk."""
    file, offset, nbytes = homes.disk_range(j)
    data = Arena(nbytes, CPU, register=False).tensor
    file.read(offset, data)
    return data


def packed(values: torch.Tensor) -> torch.Tensor:
    """A parameter as the reference quantises it."""
    out = torch.empty(quantised_bytes(values.numel()), dtype=torch.uint8)
    quantise(values.flatten(), out)
    return out


def assert_loaded(directory: Path, work: Path, dtype: str, bits: int) -> None:
    """All homes hold what transformers' from_pretrained makes of the checkpoint."""
    spec = load_model(str(directory), dtype)  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    told: list[int] = []
    with homes_of(spec, work, bits=bits) as homes:
        homes.load(Checkpoint(directory, spec), told.append)
        found = contents(homes)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            wanted = packed(expected[name]) if value.dtype == torch.uint8 else expected[name]
            assert torch.equal(value, wanted), name
    assert sum(told) == spec.num_parameters * homes.dtype.itemsize
    is_packed = {name for name, value in found.items() if value.dtype == torch.uint8}
    assert bool(is_packed) == (bits == 4)
    assert list(work.iterdir()) == []


MORE: dict[str, dict[str, object]] = {
    "qwen3_moe": {**FAMILIES["qwen3"], "moe_intermediate_size": 40, "num_experts": 4},
    "qwen2_moe": {**FAMILIES["llama"], "moe_intermediate_size": 40, "num_experts": 4},
    "falcon": {"num_hidden_layers": 3, "vocab_size": 160, "hidden_size": 64, "num_attention_heads": 4},
}


@pytest.fixture(params=[*FAMILIES, *MORE])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sharded checkpoint of each family, saved by transformers."""
    torch.set_num_threads(1)
    if request.param in MORE:
        monkeypatch.setitem(FAMILIES, request.param, MORE[request.param])
    save(random_model(request.param), tmp_path / "model", max_shard_size="100KB")
    return tmp_path / "model"


@pytest.mark.parametrize("bits", [16, 4])
def test_families(checkpoint: Path, tmp_path: Path, bits: int) -> None:
    """The tensors of each layer dealt over three tiers are those that from_pretrained gives."""
    work = tmp_path / "work"
    work.mkdir()
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    assert_loaded(checkpoint, work, "float32", bits)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_converted_on_the_way(tmp_path: Path, dtype: str, bits: int, tied: bool) -> None:
    """A float32 checkpoint is loaded in another dtype as from_pretrained does, tied or not."""
    work = tmp_path / "work"
    work.mkdir()
    model = random_model("llama", tie_word_embeddings=tied)
    save(model, tmp_path / "model")
    spec = load_model(str(tmp_path / "model"), dtype)  # type: ignore[arg-type]
    assert ("lm_head.weight" in {tensor.name for tensor in spec.ends}) != tied
    if bits == 16:
        assert_loaded(tmp_path / "model", work, dtype, bits)
        return
    with homes_of(spec, work, bits=4) as homes:
        homes.load(Checkpoint(tmp_path / "model", spec), lambda _: None)
        for name, value in contents(homes).items():
            parameter = model.get_parameter(name).detach()
            if value.dtype == torch.uint8:  # quantised from the checkpoint's values, not from rounded ones
                assert torch.equal(value, packed(parameter)), name
            else:
                assert torch.equal(value, parameter.to(homes.dtype)), name


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cut_in_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, bits: int) -> None:
    """Tensors larger than the buffers, pages shared by neighbours and experts that end inside a group."""
    monkeypatch.setattr(load_checkpoint, "_PIECE_BYTES", PAGE_BYTES)
    work = tmp_path / "work"
    work.mkdir()
    save(random_model("mixtral", intermediate_size=37), tmp_path / "model")
    if bits == 4 and dtype == "float16":
        save(random_model("mixtral", torch.float16, intermediate_size=37), tmp_path / "model")
    assert_loaded(tmp_path / "model", work, dtype, bits)


def test_buffers_stay_within_the_ledgers_entry() -> None:
    """The buffers of all threads together are no more than the ledger's LOADING_BYTES."""
    each = load_checkpoint._BUFFERS * load_checkpoint._PIECE_BYTES + 2 * PAGE_BYTES
    assert load_checkpoint._MAX_THREADS * each <= LOADING_BYTES


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_cannot_be_quantised(tmp_path: Path, bad: float) -> None:
    """A damaged tensor is named; unquantised it is loaded as it is."""
    spec, file = save(random_model("opt"), tmp_path / "model"), tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.layers.1.fc2.weight"][3, 3] = bad
    save_file(tensors, file)
    with (
        homes_of(spec, tmp_path, bits=4) as homes,
        pytest.raises(UserError, match=r"layers\.1\.fc2\.weight holds values that are not finite"),
    ):
        homes.load(Checkpoint(tmp_path / "model", spec), lambda _: None)
    with homes_of(spec, tmp_path) as homes:
        homes.load(Checkpoint(tmp_path / "model", spec), lambda _: None)


def test_values_beyond_float16(tmp_path: Path) -> None:
    """A float32 checkpoint that does not fit float16 is refused instead of loaded as infinities."""
    save(random_model("opt"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] = 1e6
    save_file(tensors, file)
    spec = load_model(str(tmp_path / "model"), "float16")
    with (
        homes_of(spec, tmp_path) as homes,
        pytest.raises(UserError, match=r"layers\.0\.fc1\.weight has values beyond float16's range"),
    ):
        homes.load(Checkpoint(tmp_path / "model", spec), lambda _: None)


def test_an_interrupt_ends_the_loading(tmp_path: Path) -> None:
    """Ctrl-C in the middle stops all workers, and the files go with the store."""
    spec = save(random_model("opt"), tmp_path / "model")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with homes_of(spec, tmp_path) as homes, pytest.raises(KeyboardInterrupt):
        homes.load(Checkpoint(tmp_path / "model", spec), interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("family", ["opt", "mixtral", "gpt2", "gemma2"])
def test_dummy_weights(tmp_path: Path, family: str, bits: int) -> None:
    """Random matrices of variance 1 / fan-in, norms 1, biases 0; the same for the same seed."""
    spec = save(random_model(family, torch.float16), tmp_path / "model")
    with homes_of(spec, tmp_path, bits=bits) as homes, homes_of(spec, tmp_path, bits=bits) as others:
        homes.load_dummy(seed=1)
        others.load_dummy(seed=1)
        found, again = contents(homes), contents(others)
        for name, tensor in named_tensors(spec):
            value = found[name]
            assert torch.equal(value, again[name])
            if value.dtype == torch.uint8:
                unpacked = torch.empty(tensor.numel, dtype=torch.float16)
                dequantise(value, tensor.numel, unpacked)
                value = unpacked
            if len(tensor.shape) == 1:
                assert bool((value == (1 if name.endswith("weight") else 0)).all()), name
            else:
                deviation = float(value.float().std()) * tensor.shape[-1] ** 0.5
                assert 0.8 < deviation < 1.2, name


def test_loading_to_disk_stays_in_bounded_memory(tmp_path: Path) -> None:
    """A 600 MB checkpoint goes to disk in the ends, one layer and 100 MiB, as the system counts it."""
    script = Path(__file__).with_name("load_to_disk.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    checkpoint_bytes, ends_bytes, layer_bytes, grown_bytes = map(int, done.stdout.split())
    assert checkpoint_bytes > 550e6
    assert grown_bytes < ends_bytes + layer_bytes + 100 * 2**20


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [16, 4])
def test_homes_on_cuda(tmp_path: Path, bits: int) -> None:
    """The gpu tier is on the device, the cpu tier is pinned, and all hold the checkpoint."""
    device = torch.device("cuda", 0)
    model = random_model("llama", torch.float16)
    spec = save(model, tmp_path / "model")
    with homes_of(spec, tmp_path, bits=bits, device=device) as homes:
        homes.load(Checkpoint(tmp_path / "model", spec), lambda _: None)
        assert homes.slab(0, "gpu").device == homes.end("model.norm.weight").device == device
        assert homes.slab(0, "cpu").is_pinned()
        for name, value in contents(homes).items():
            parameter = model.get_parameter(name).detach()
            wanted = packed(parameter) if value.dtype == torch.uint8 else parameter
            assert torch.equal(value.cpu(), wanted), name
