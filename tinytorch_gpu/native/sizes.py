"""From how many rows or tokens on native code goes another way, and what it is lent to work in."""

# As many rows and more meet a weight of floats as whole matrices: MANY_ROWS of kernels/cpu/linear.h.
MANY_ROWS = 24
# More new tokens than these are a prompt, whose products with the cache are better made a tile at a time.
MOST_TOKENS = 16
PIECES = 16  # of kernels/cpu/cached_attention.cpp


def rounded_bytes(width: int) -> int:
    """Bytes of a row of x in 8 bits, with its scales (kernels/cpu/linear_quantized.h)."""
    return -(-(width + width // 32 * 16) // 64) * 64


def parts_size(batch: int, heads: int, tokens: int, width: int) -> int:
    """Numbers in float32 that attention of a few tokens through the cache keeps of its pieces."""
    return batch * PIECES * heads * tokens * (width + 2)
