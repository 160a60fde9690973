"""Devices by name, with the rates that their vendors publish.

``source`` names the vendor's document. On ``DATE`` the figures of most were compared with public specification
pages, not with those documents; not found there were those of RTX 2080 Ti, A100 PCIe, Jetson AGX Orin and the CPUs but
EPYC 7763, and float16 of A10 and RTX 3090.

Peak rates are those without sparsity, of products that add up in float32. A GPU makes 16 special results a
clock and multiprocessor from compute capability 7.5 on (CUDA C++ Programming Guide, arithmetic instructions),
which is a sixteenth of its float32 operations where a multiprocessor has 128 lanes, an eighth where it has 64.
A CPU's rate is cores x base clock x operations a clock (two fused multiply-adds of its vector width); its
exponentials are taken as sixteen operations.
"""

from .spec import DeviceSpec

GB, T = 1e9, 1e12
DATE = "2026-11"


def _gpu(
    name: str, capability: str, memory: float, bandwidth: float, float32: float, half: float,
    source: str, *, tf32: float = 0.0, bfloat16: bool = True, float64: float = 0.0, lanes: int = 128,
) -> DeviceSpec:  # fmt: skip
    rates = {"float32": float32, "float16": half, "bfloat16": half if bfloat16 else 0.0, "tf32": tf32,
             "float64": float64 or float32 / 64}  # fmt: skip
    return DeviceSpec(
        name, "gpu", memory * GB, bandwidth * GB, {k: v * T for k, v in rates.items() if v},
        float32 * T, float32 * T * 8 / lanes, 0.0, capability, source, DATE,
    )  # fmt: skip


def _cpu(
    name: str, cores: int, clock: float, each: int, bandwidth: float, memory: float, source: str
) -> DeviceSpec:
    rate = cores * clock * 1e9 * each
    return DeviceSpec(
        name, "cpu", memory * GB, bandwidth * GB, {"float32": rate, "float64": rate / 2}, rate, rate / 16,
        0.0, "", f"{source}: {cores} cores x {clock} GHz x {each} operations a clock", DATE,
    )  # fmt: skip


DEVICES = {
    made.name: made
    for made in (
        _gpu("T4", "7.5", 16, 320, 8.1, 65, "NVIDIA T4 product brief PB-09256-001",
             bfloat16=False, float64=8.1 / 32, lanes=64),
        _gpu("RTX 2080 Ti", "7.5", 11, 616, 14.2, 56.9, "NVIDIA Turing architecture whitepaper WP-09183-001",
             bfloat16=False, float64=14.2 / 32, lanes=64),
        _gpu("A100 40GB", "8.0", 40, 1555, 19.5, 312, "NVIDIA A100 data sheet (SXM4 40 GB)",
             tf32=156, float64=19.5, lanes=64),
        _gpu("A100 80GB PCIe", "8.0", 80, 1935, 19.5, 312, "NVIDIA A100 80GB data sheet",
             tf32=156, float64=19.5, lanes=64),
        _gpu("A100 80GB SXM", "8.0", 80, 2039, 19.5, 312, "NVIDIA A100 80GB data sheet",
             tf32=156, float64=19.5, lanes=64),
        _gpu("A10", "8.6", 24, 600, 31.2, 125, "NVIDIA A10 data sheet", tf32=62.5),
        _gpu("RTX 3090", "8.6", 24, 936, 35.6, 71, "NVIDIA Ampere GA102 whitepaper v2", tf32=35.6),
        _gpu("Jetson AGX Orin 64GB", "8.7", 64, 204.8, 5.3, 42.5,
             "NVIDIA Jetson AGX Orin technical brief v1.2 (float16: half of its dense INT8 rate)"),
        _gpu("Jetson Orin Nano 8GB", "8.7", 8, 68, 1.28, 10,
             "NVIDIA Jetson Orin Nano data sheet (float16: half of its dense INT8 rate)"),
        _gpu("L4", "8.9", 24, 300, 30.3, 121, "NVIDIA L4 data sheet", tf32=60),
        _gpu("L40S", "8.9", 48, 864, 91.6, 362, "NVIDIA L40S data sheet", tf32=183),
        _gpu("RTX 4090", "8.9", 24, 1008, 82.6, 165.2, "NVIDIA Ada GPU architecture whitepaper", tf32=82.6),
        _gpu("H100 PCIe", "9.0", 80, 2000, 51, 756, "NVIDIA H100 data sheet", tf32=378, float64=51),
        _gpu("H100 SXM", "9.0", 80, 3350, 67, 989, "NVIDIA H100 data sheet", tf32=494, float64=67),
        _gpu("H200", "9.0", 141, 4800, 67, 989, "NVIDIA H200 data sheet", tf32=494, float64=67),
        _gpu("B200", "10.0", 180, 8000, 75, 2250, "NVIDIA DGX B200 data sheet, an eighth of the system",
             tf32=1100, float64=37),
        _gpu("RTX 5090", "12.0", 32, 1792, 104.8, 209.5, "NVIDIA RTX Blackwell GPU architecture whitepaper",
             tf32=104.8),
        _cpu("EPYC 7763", 64, 2.45, 32, 204.8, 2048, "AMD EPYC 7763 product page, 8 channels of DDR4-3200"),
        _cpu("Xeon Platinum 8480+", 56, 2.0, 64, 307.2, 4096,
             "Intel Xeon Platinum 8480+ specifications, 8 channels of DDR5-4800"),
        _cpu("Ryzen 9 7950X", 16, 4.5, 32, 83.2, 128,
             "AMD Ryzen 9 7950X product page, 2 channels of DDR5-5200"),
        _cpu("Raspberry Pi 5", 4, 2.4, 16, 17.1, 8,
             "Raspberry Pi 5 product brief, 32 bits of LPDDR4X-4267"),
    )
}  # fmt: skip


def named_device(name: str) -> DeviceSpec:
    """The device called ``name``, in any case, spaces or dashes; an unknown one is a ValueError."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum() or c == "+")

    found = {plain(n): spec for n, spec in DEVICES.items()}.get(plain(name))
    if found is None:
        raise ValueError(
            f"no device {name!r}; there are {', '.join(DEVICES)}, and --device-spec FILE for others"
        )
    return found
