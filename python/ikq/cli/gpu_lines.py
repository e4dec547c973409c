"""What `ikq info` and `ikq cuda` say about GPUs."""

from __future__ import annotations

from ikq.cuda import Device, Status

__all__ = ["gpu_lines"]


def gpu_lines(found: Status) -> list[str]:
    """A line per device, and what is used with them; or the reason why none is usable."""
    lines = [
        f"GPU: {device['name']}, compute capability {device['compute_capability']}, "
        f"{_memory(device)}, {device['n_multiprocessors']} multiprocessors"
        + ("" if device["usable"] else " (too old)")
        for device in found["devices"]
    ]
    if found["cuda_version"]:
        driver = f" {found['driver']}" if found["driver"] else ""
        lines.append(f"NVIDIA driver{driver}: CUDA {found['cuda_version']}")
    if found["usable"]:
        lines.append(f"NVRTC: {found['nvrtc_version']}, {found['nvrtc']}")
        lines.append(f"compiled kernels: {found['cache'] or 'not kept'}")
    else:
        lines.append(f"no GPU is usable: {found['reason']}")
    return lines


def _memory(device: Device) -> str:
    """`79.2 of 80.0 GiB free`."""
    total, free = f"{device['memory_bytes'] / 2**30:.1f} GiB", device["free_bytes"]
    return total if free is None else f"{free / 2**30:.1f} of {total} free"
