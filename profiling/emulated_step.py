"""A captured decode step on the emulated device: launches, and bytes against the least possible."""

from typing import Any

from tinytorch_gpu import Transformer, TransformerConfig, emulated
from tinytorch_gpu.generation import Cache, capture

# SmolLM2-135M's layers; fewer of them and of the vocabulary, which repeat.
LAYERS, VOCABULARY, CONTEXT = 2, 1024, 100
FORMATS = ("float32", "float16", "q8_0", "q4_0")


def measure(form: str) -> dict[str, Any]:
    """Launches, bytes moved and the least: the weights once, and the keys and values that are seen."""
    config = TransformerConfig(
        VOCABULARY, 576, 9, LAYERS, 1536, 256, num_kv_heads=3, norm="rms", position="rotary",
        activation="swiglu", ffn_bias=False, tie_embeddings=True,
    )  # fmt: skip
    dtype = form if form.startswith("float") else "float32"
    model = Transformer.from_config(config, device="cpu", dtype=dtype, seed=0)
    model = (model if dtype == form else model.to(form)).to("emulated").eval()
    cache = Cache.for_model(model, 1, CONTEXT + 4)
    cache._set_lengths(slice(None), CONTEXT)
    step = capture(model, 1, cache)
    step(model.device.asarray([5]))
    with emulated.recorded() as launches:
        step(model.device.asarray([7]))
    total = emulated.Counters(launches=0)
    for launch in launches:
        total.add(launch.counters)
    place = cache.nbytes // cache.capacity  # keys and values of one place, in all layers
    least = model.nbytes + (CONTEXT + 2) * place
    return {
        "format": form, "launches": len(launches), "layers": LAYERS, "least": least,
        "moved": total.read_bytes + total.written_bytes,
    }  # fmt: skip
