"""What only a GPU can show: streams, devices, graphs, and agreement with the kernels of the CPU."""

import subprocess
import sys

import pytest
import torch

import dmmlkd_ext
from dmmlkd_ext.ops.gossip_mix import gossip_mix_reference
from dmmlkd_ext.ops.orthogonality import orthogonality_difference_reference
from dmmlkd_ext.ops.pairwise_kl import pairwise_kl_similarity_reference

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("cuda_operators")]


def pairwise_kl(logits, mask=None, reduction=1):
    return torch.ops.dmmlkd.pairwise_kl_forward(logits, mask, reduction, True)


def random_logits(*shape, dtype=torch.float32, seed=0):
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def ring(rows, dtype=torch.float32):
    weights = torch.eye(rows) / 2 + (torch.eye(rows).roll(1, 0) + torch.eye(rows).roll(-1, 0)) / 4
    sparse = weights.to(torch.float64 if dtype == torch.float64 else torch.float32).to_sparse_csr()
    return sparse.crow_indices().clone(), sparse.col_indices().clone(), sparse.values().clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(100_000, 2, 10), (20, 256, 6, 100), (4096, 3, 1000), (64, 8, 2000)], ids=str)
def test_pairwise_kl_agrees_with_the_cpu(shape, dtype):
    logits = random_logits(*shape, dtype=dtype)
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.8
    expected_loss, expected_gradient = pairwise_kl(logits, mask)
    loss, gradient = pairwise_kl(logits.cuda(), mask.cuda())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=tolerance, atol=0)
    # A mean over many samples brings float16's gradients down to its smallest numbers.
    floor = 1.2e-7 if dtype == torch.float16 else 0.0
    atol = tolerance * expected_gradient.double().abs().max().item() + floor
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=0, atol=atol)
    assert gradient.stride() == expected_gradient.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(10, 1_000_000), (100, 100_003), (1000, 20_000)])
def test_gossip_mix_agrees_with_the_cpu(rows, columns, dtype):
    local, out = random_logits(rows, columns, dtype=dtype), random_logits(rows, columns, dtype=dtype, seed=1)
    weights = ring(rows, dtype)
    far = out.cuda()
    far_weights = [part.cuda() for part in weights]
    norms = torch.ops.dmmlkd.gossip_mix_(local.cuda(), *far_weights, far, 0, columns, True)
    expected = torch.ops.dmmlkd.gossip_mix_(local, *weights, out, 0, columns, True)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(far.cpu(), out, rtol=tolerance, atol=4 * tolerance)
    torch.testing.assert_close(norms.cpu(), expected, rtol=1e-5, atol=0)
    in_place = local.cuda()
    torch.ops.dmmlkd.gossip_mix_inplace_(in_place, *far_weights, 0, columns)
    assert torch.equal(in_place, far)


def test_the_current_stream_is_used():
    logits = random_logits(4096, 3, 1000).cuda()
    expected = pairwise_kl(logits)
    stream = torch.cuda.Stream()
    waited = torch.cuda.Event()
    buffer = torch.zeros_like(logits)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # what follows on another stream would see zeros
        buffer.copy_(logits)
        loss, gradient = pairwise_kl(buffer)
        waited.record()
    waited.synchronize()
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


def test_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    logits = random_logits(300, 3, 10)
    loss, gradient = pairwise_kl(logits.to("cuda:1"))
    assert loss.device == gradient.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    expected = pairwise_kl(logits)
    torch.testing.assert_close(loss.cpu(), expected[0])
    torch.testing.assert_close(gradient.cpu(), expected[1])


def test_cuda_graphs():
    logits = random_logits(4096, 3, 100).cuda()
    weights = [part.cuda() for part in ring(10)]
    local, out = random_logits(10, 5000).cuda(), torch.zeros(10, 5000, device="cuda")

    def step():
        norms = torch.ops.dmmlkd.gossip_mix_(local, *weights, out, 0, 5000, True)
        return *pairwise_kl(logits), norms

    step()  # the weights are checked on the host once, which a capture would forbid
    out.zero_()
    expected = [*step(), out.clone()]
    out.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    torch.cuda.synchronize()
    for result, value in zip([*results, out], expected, strict=True):
        assert torch.equal(result, value)


def test_many_samples_share_few_partial_sums():
    logits = random_logits(3_000_000, 2, 3).cuda()
    loss, gradient = pairwise_kl(logits)
    expected_loss, expected_gradient = pairwise_kl(logits.cpu())
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=1e-4, atol=1e-12)


def test_more_elements_than_32_bits_count():
    rows, columns = 3, 1_500_000_000
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("the device has less than 40 GiB")
    local = torch.ones(rows, columns, dtype=torch.bfloat16, device="cuda")
    out = torch.zeros_like(local)
    norms = torch.ops.dmmlkd.gossip_mix_(local, *(part.cuda() for part in ring(rows)), out, 0, columns, True)
    assert torch.equal(out, local)
    assert torch.equal(norms, torch.tensor([[columns] * rows, [0] * rows], dtype=torch.float64, device="cuda"))


def leaf(*shape, seed=0, dtype=torch.float32):
    return random_logits(*shape, seed=seed, dtype=dtype).cuda().requires_grad_()


def normalized(h, s):
    return dmmlkd_ext.orthogonality_difference(h, s, normalize=True)


def losses():
    """Each loss as a function of leaves on a GPU, with these leaves."""
    mask = (torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) < 0.8).cuda()
    weights = dmmlkd_ext.ops.GossipWeights(*(part.cuda() for part in ring(6)))
    return {
        "pairwise_kl": (lambda z: dmmlkd_ext.pairwise_kl_similarity(z, mask), [(300, 3, 10)]),
        "orthogonality": (dmmlkd_ext.orthogonality_difference, [(4, 32, 16), (4, 32, 16)]),
        "normalized": (normalized, [(4, 32, 16), (4, 32, 16)]),
        "by samples": (normalized, [(4, 32, 100), (4, 32, 90)]),
        "shared out": (normalized, [(2, 4096, 64), (2, 4096, 20)]),
        "by the library": (normalized, [(2, 300, 150), (2, 300, 140)]),
        "gossip_mix": (lambda x: dmmlkd_ext.gossip_mix(x, weights).square().sum(), [(6, 100)]),
    }


ORTHOGONALITY = ["orthogonality", "normalized", "by samples", "shared out", "by the library"]
LOSSES = ["pairwise_kl", *ORTHOGONALITY, "gossip_mix"]


def on_the_cpu(name, leaves):
    """Loss and gradients by the reference, in float64 on the CPU."""
    wide = [x.detach().cpu().double().requires_grad_() for x in leaves]
    mask = torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    weights = dmmlkd_ext.ops.GossipWeights(*ring(6, torch.float64))
    functions = {
        "pairwise_kl": lambda z: pairwise_kl_similarity_reference(z, mask),
        "orthogonality": orthogonality_difference_reference,
        "gossip_mix": lambda x: gossip_mix_reference(x, weights).square().sum(),
    }
    loss = functions.get(name, lambda h, s: orthogonality_difference_reference(h, s, normalize=True))(*wide)
    return loss.detach(), torch.autograd.grad(loss, wide)


def check_against_the_cpu(name, loss, gradients, leaves, tolerance=1e-4):
    expected, slopes = on_the_cpu(name, leaves)
    torch.testing.assert_close(loss.detach().cpu().double(), expected, rtol=tolerance, atol=0)
    for gradient, slope in zip(gradients, slopes, strict=True):
        atol = tolerance * slope.abs().max().item()
        torch.testing.assert_close(gradient.cpu().double(), slope, rtol=0, atol=atol)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autograd(name, compiled):
    function, shapes = losses()[name]
    leaves = [leaf(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if compiled:
        function = torch.compile(function, fullgraph=True)
    loss = function(*leaves)
    check_against_the_cpu(name, loss, torch.autograd.grad(loss, leaves), leaves)


@pytest.mark.parametrize("name", ["pairwise_kl", *ORTHOGONALITY])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_in_float32(name, dtype):
    function, shapes = losses()[name]
    leaves = [leaf(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    with torch.autocast("cuda", dtype):
        loss = function(*leaves)
    assert loss.dtype == torch.float32
    check_against_the_cpu(name, loss, torch.autograd.grad(loss, leaves), leaves)


def test_mixing_compiles_for_reduced_overhead():
    function, shapes = losses()["gossip_mix"]
    leaves = [leaf(*shape) for shape in shapes]
    compiled = torch.compile(function, mode="reduce-overhead")
    for _ in range(4):  # warm-up, capture, replays
        loss = compiled(*leaves)
        check_against_the_cpu("gossip_mix", loss.clone(), torch.autograd.grad(loss, leaves), leaves)


OPERATORS = ["pairwise_kl_forward", "pairwise_kl_backward", "gossip_mix", "gossip_mix_", "orthogonality_forward"]


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    weights = [part.cuda() for part in ring(6)]
    local = random_logits(6, 100).cuda()
    arguments = {
        "pairwise_kl_forward": (random_logits(40, 3, 10).cuda(), None, 1, True),
        "pairwise_kl_backward": (local.sum(), random_logits(40, 3, 10).cuda(), None, 1),
        "gossip_mix": (local, *weights, None),
        "gossip_mix_": (local, *weights, torch.zeros_like(local), 0, 100, True),
        "orthogonality_forward": (local.view(6, 10, 10), local.view(6, 10, 10), None, False, 1, True, True),
    }[name]
    operator = getattr(torch.ops.dmmlkd, name).default
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"dmmlkd::{name}", "CUDA"):
        pytest.skip("this operator runs by its reference on CUDA")
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("name", ["pairwise_kl", *ORTHOGONALITY])
def test_a_loss_and_its_gradient_wait_for_nothing(name):
    function, shapes = losses()[name]
    leaves = [leaf(*shape) for shape in shapes]
    function(*leaves).backward()  # whatever the first call sets up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(*leaves).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["pairwise_kl", *ORTHOGONALITY])
def test_a_loss_and_its_gradient_in_a_cuda_graph(name):
    function, shapes = losses()[name]
    leaves = [leaf(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.autograd.grad(function(*leaves), leaves)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = function(*leaves)
        gradients = torch.autograd.grad(loss, leaves)
    graph.replay()
    check_against_the_cpu(name, loss, gradients, leaves)


def test_the_first_call_may_be_captured():
    """Kernels that were never loaded are loaded in a capture: in a process of its own."""
    program = (
        "import torch, dmmlkd_ext\n"
        "logits, graph = torch.randn(4096, 3, 100, device='cuda'), torch.cuda.CUDAGraph()\n"
        "with torch.cuda.graph(graph): captured = torch.ops.dmmlkd.pairwise_kl_forward(logits, None, 1, True)\n"
        "graph.replay()\n"
        "again = torch.ops.dmmlkd.pairwise_kl_forward(logits, None, 1, True)\n"
        "assert all(torch.equal(*pair) for pair in zip(captured, again))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mixing_and_its_gradient_wait_once_a_matrix():
    function, shapes = losses()["gossip_mix"]
    local = leaf(*shapes[0])
    function(local).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(local).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
