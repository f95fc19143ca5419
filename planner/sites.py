"""Sites: which host, GPU, processors and share of the host's memory and disk each rank of a pipeline has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprofiles.errors import UserError
from hwprofiles.points import Dtype, SizePoint
from hwprofiles.profile import Gpu, HardwareProfile
from planner.host_share import share_of, sharing_of
from planner.machine import Caps
from planner.policy import CommDevice
from planner.rates import Rates, make_rates
from planner.sharing import Sharing, at_work

_MESSAGE_BYTES = 2**20
"""Where two ways for messages are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where one rank runs."""

    host: int
    gpu: int | None
    cpus: tuple[int, ...]
    """Positions among the host's processors; empty where there are more ranks than processors."""
    num_ranks: int
    """On the same host, this one included."""
    whole: HardwareProfile
    share: HardwareProfile
    sharing: Sharing | None

    def rates(self, dtype: Dtype, num_waves: int) -> Rates:
        """Those of the share; with few waves other ranks rest."""
        found = make_rates(self.share, dtype)
        return at_work(found, self.sharing, num_waves) if self.sharing else found

    def caps(self, caps: Caps) -> Caps:
        """A GPU's cap is each rank's own; host memory and disk are shared out."""
        cpu, disk = (
            None if nbytes is None else nbytes // self.num_ranks
            for nbytes in (caps.cpu_bytes, caps.disk_bytes)
        )
        headroom = caps.headroom
        if headroom:
            headroom = replace(headroom, num_bytes=headroom.num_bytes // self.num_ranks)
        return replace(caps, cpu_bytes=cpu, disk_bytes=disk, headroom=headroom)


def sites_of(hosts: Sequence[HardwareProfile], num_stages: int, comm_device: CommDevice) -> tuple[Site, ...]:
    """A site for each rank, host by host; a UserError where the hosts have too few GPUs, or too many are idle."""
    counts = _ranks_by_host(hosts, num_stages)
    placed = [
        (host, gpu)
        for host, (profile, count) in enumerate(zip(hosts, counts, strict=True))
        for gpu in _gpus(profile, count)
    ]
    by_host = [_cpus(profile, [gpu for host, gpu in placed if host == h]) for h, profile in enumerate(hosts)]
    sites = []
    for rank, (host, gpu) in enumerate(placed):
        hops = [
            _hop(hosts, placed[before], placed[after], comm_device)
            for before, after in ((rank - 1, rank), (rank, rank + 1))
            if before >= 0 and after < num_stages
        ]
        profile, local = hosts[host], rank - sum(counts[:host])
        sites.append(
            Site(
                host=host,
                gpu=gpu,
                cpus=by_host[host][local],
                num_ranks=counts[host],
                whole=profile,
                share=share_of(profile, counts[host], gpu, min(hops, key=_rate_of, default=())),
                sharing=sharing_of(profile, counts[host]),
            )
        )
    return tuple(sites)


def most_stages(hosts: Sequence[HardwareProfile], num_layers: int) -> int:
    """As many as there are GPUs; without any, one for each processor. Never more than layers."""
    capacities = [_capacity(profile) for profile in hosts]
    found = sum(
        capacity if capacity is not None else profile.host.logical_cores
        for profile, capacity in zip(hosts, capacities, strict=True)
    )
    return min(found, num_layers)


def _capacity(profile: HardwareProfile) -> int | None:
    """Ranks a host may have; None where no GPU sets a bound."""
    real = [gpu for gpu in profile.gpus if not gpu.emulated]
    return len(real) if real else None


def _ranks_by_host(hosts: Sequence[HardwareProfile], num_stages: int) -> list[int]:
    capacities = [_capacity(profile) for profile in hosts]
    if len({bool(capacity) for capacity in capacities}) > 1:
        raise UserError("some hosts have GPUs and some have none; plan a pipeline for hosts of one kind")
    if num_stages < len(hosts):
        raise UserError(
            f"{num_stages} stages on {len(hosts)} hosts: a host would be idle; name fewer with --hosts, "
            f"or --stages {len(hosts)}"
        )
    most = [num_stages if capacity is None else capacity for capacity in capacities]
    if sum(most) < num_stages:
        names = ", ".join(f"{profile.name} has {count}" for profile, count in zip(hosts, most, strict=True))
        raise UserError(
            f"{num_stages} stages need a GPU each, {names}; use --stages {sum(most)} at most, "
            "or name further hosts with --hosts"
        )
    counts = [0] * len(hosts)
    for _ in range(num_stages):
        free = [host for host, count in enumerate(counts) if count < most[host]]
        counts[min(free, key=lambda host: counts[host])] += 1
    return counts


def _gpus(profile: HardwareProfile, count: int) -> list[int | None]:
    """The GPUs that ranks take: the fastest, in the order of the host."""
    if not profile.gpus:
        return [None] * count
    if profile.gpus[0].emulated:
        return [0] * count
    fastest = sorted(range(len(profile.gpus)), key=lambda index: -_gemm(profile.gpus[index]))
    return [*sorted(fastest[:count])]


def _gemm(gpu: Gpu) -> float:
    return max(point.flops_per_s.median for points in gpu.gemm.values() for point in points)


def _cpus(profile: HardwareProfile, gpus: Sequence[int | None]) -> list[tuple[int, ...]]:
    """Each rank's processors: of its GPU's NUMA node where that is known, divided among the ranks that share them."""
    everything = tuple(range(profile.host.logical_cores))
    pools = []
    for gpu in gpus:
        node = profile.gpus[gpu].numa_node if gpu is not None else None
        known = profile.host.numa_cpus
        pools.append(known[node] if node is not None and node < len(known) else everything)
    found = []
    for local, pool in enumerate(pools):
        peers = [other for other, same in enumerate(pools) if same == pool]
        index, count = peers.index(local), len(peers)
        found.append(pool[len(pool) * index // count : len(pool) * (index + 1) // count])
    return found


def _hop(
    hosts: Sequence[HardwareProfile],
    before: tuple[int, int | None],
    after: tuple[int, int | None],
    comm_device: CommDevice,
) -> tuple[SizePoint, ...]:
    """How messages travel from one rank to the next; empty where it was not measured within a host."""
    profile = hosts[before[0]]
    if before[0] != after[0]:
        if not profile.between_hosts:
            raise UserError(
                f"profile {profile.name} does not say how fast its host talks to others; "
                "measure it with: hwprofile measure --net"
            )
        return profile.between_hosts
    direct = profile.gpu_to_gpu_bytes_per_s
    if comm_device == "cuda" and direct is not None:
        return (SizePoint(size_bytes=_MESSAGE_BYTES, bytes_per_s=direct),)
    return profile.between_processes


def _rate_of(hop: Sequence[SizePoint]) -> float:
    return max((point.bytes_per_s.median for point in hop), default=float("inf"))
