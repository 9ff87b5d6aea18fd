"""What a device can do, as far as a plan needs it: makers' figures, and how much of them training is taken to reach."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of device, eight of which usually share a machine.  Bandwidths are per device and direction."""

    title: str
    memory: float  # bytes of the device; 0: it works in the host's memory
    host_memory: float  # bytes of the host's memory for each device
    peak_flops: float  # dense bfloat16 products, a second
    efficiency: float  # share of peak_flops that training is taken to reach
    memory_bandwidth: float  # bytes a second
    link: float  # bytes a second to the other devices of a machine
    network: float  # bytes a second to other machines
    hop: float  # seconds that a message takes from a rank to the next one, at least
    reserved: float  # bytes of the device that its driver and the communication library take
    program: float  # bytes of the host that each rank's libraries take beside those of a CPU build

    @property
    def is_cpu(self) -> bool:
        """Whether the ranks compute in the host's memory, over gloo."""
        return self.memory == 0


HARDWARE = {
    "h100": Hardware("NVIDIA H100 SXM", 80e9, 256 * GIB, 989e12, 0.40, 3.35e12, 450e9, 50e9, 3e-6, 1.5 * GIB, 4 * GIB),
    "h200": Hardware("NVIDIA H200 SXM", 141e9, 256 * GIB, 989e12, 0.40, 4.8e12, 450e9, 50e9, 3e-6, 1.5 * GIB, 4 * GIB),
    "a100": Hardware(
        "NVIDIA A100 SXM 80 GB", 80e9, 128 * GIB, 312e12, 0.45, 2.04e12, 300e9, 25e9, 3e-6, 1.5 * GIB, 4 * GIB
    ),
    "cpu": Hardware("one core of a server's CPU", 0, 12 * GIB, 0.1e12, 0.5, 10e9, 1e9, 1e9, 1e-4, 0.0, 0.0),
}
"""Name -> device.  NVIDIA's data sheets: NVLink 4 has 450 GB/s a direction and NVLink 3 has 300; a port of InfiniBand,
one a GPU, has 50 GB/s (NDR) or 25 (HDR).  Hosts of 2 TiB (A100: 1 TiB) for eight GPUs are usual.  Efficiencies are what
published training runs of dense models of 1 to 70 billion parameters reach; a hop of 3 us is about what a small message
of NCCL takes.  The CPU's figures are orders of magnitude."""
