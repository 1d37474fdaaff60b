"""A second implementation of every family, straight from the formulas: loops over single numbers and tokens, float64.

It shares no code with the package. Weights come as a dict of numpy arrays by their published names. Slow on purpose.
"""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def weights_of(model) -> Weights:
    return {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}


def sigmoid(v: float) -> float:
    return 1 / (1 + exp(-v)) if v >= 0 else exp(v) / (1 + exp(v))


def softplus(v: float) -> float:
    return np.log1p(exp(-abs(v))) + max(v, 0.0)


def rms_norm(x: Array, w: Array) -> Array:
    return x / sqrt(float(np.mean(x * x)) + 1e-5) * w


def layer_norm(x: Array, w: Array, b: Array) -> Array:
    return (x - x.mean()) / sqrt(float(x.var()) + 1e-5) * w + b


def scan_direction(u: Array, z: Array, w: Weights, p: str, b: str, back: str = "") -> Array:
    """One direction over the rows of u, z [L, e]; p is the prefix of the layer, b is "" or "_b".

    back: scan backward what the forward convolution and projections give: "v1" with `A_b_log`, "poly" with the same A;
    "poly_forward": forward, with the coefficient of the polynomial method.
    """
    length, inner = u.shape
    A = -np.exp(w[f"{p}mixer.{'A_b_log' if b or back == 'v1' else 'A_log'}"])
    kernel, bias = w[f"{p}mixer.conv1d{b}.weight"][:, 0], w[f"{p}mixer.conv1d{b}.bias"]
    x_proj, dt_proj = w[f"{p}mixer.x_proj{b}.weight"], w[f"{p}mixer.dt_proj{b}.weight"]
    dt_bias, D = w[f"{p}mixer.dt_proj{b}.bias"], w[f"{p}mixer.D{b}"]
    states, rank, width = A.shape[1], dt_proj.shape[1], kernel.shape[1]
    h = np.zeros((inner, states))
    y = np.zeros((length, inner))
    for t in reversed(range(length)) if back in ("v1", "poly") else range(length):
        conv = np.zeros(inner)
        for c in range(inner):
            value = bias[c]
            for k in range(width):
                if t - (width - 1) + k >= 0:
                    value += kernel[c, k] * u[t - (width - 1) + k, c]
            conv[c] = value * sigmoid(value)
        parts = x_proj @ conv
        dt, B, C = parts[:rank], parts[rank : rank + states], parts[rank + states :]
        for c in range(inner):
            delta = softplus(float(dt_proj[c] @ dt) + dt_bias[c])
            for n in range(states):
                decay, drive = exp(delta * A[c, n]), delta
                if back.startswith("poly"):
                    drive = (decay - 1) / A[c, n] + (decay - 1 - delta * A[c, n]) / A[c, n] ** 2 / 2
                h[c, n] = decay * h[c, n] + drive * B[n] * conv[c]
            y[t, c] = (float(h[c] @ C) + D[c] * conv[c]) * z[t, c] * sigmoid(z[t, c])
    return y


def mixer(x: Array, w: Weights, p: str, directions: str) -> Array:
    """directions: "forward", "sum" or "mean" of both, "v1", or "poly" as published."""
    inner = w[f"{p}mixer.D"].shape[0]
    projected = x @ w[f"{p}mixer.in_proj.weight"].T
    u, z = projected[:, :inner], projected[:, inner:]
    if directions == "poly":
        y = (scan_direction(u, z, w, p, "", "poly_forward") + scan_direction(u, z, w, p, "", "poly")) / 2
    else:
        y = scan_direction(u, z, w, p, "")
    if directions == "v1":
        y = y + scan_direction(u, z, w, p, "", "v1")
    elif directions in ("sum", "mean"):
        y = y + scan_direction(u[::-1], z[::-1], w, p, "_b")[::-1]
        if directions == "mean":
            y = y / 2
    y = y @ w[f"{p}mixer.out_proj.weight"].T
    return y * w[f"{p}mixer.gamma"] if f"{p}mixer.gamma" in w else y


def layers(tokens: Array, w: Weights, depth: int, directions: str) -> Array:
    """Token stream after `depth` layers, before the final norm."""
    for i in range(depth):
        normed = np.stack([rms_norm(row, w[f"layers.{i}.norm.weight"]) for row in tokens])
        tokens = tokens + mixer(normed, w, f"layers.{i}.", directions)
    return tokens


def patches_of_clip(x: Array, w: Weights, p: int, tubelet: int, stride: int | None = None) -> Array:
    """Tokens [t, s, C] of a clip [3, T, H, W]; stride None: p."""
    step = stride or p
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    _, frames, height, width = x.shape
    out = []
    for t in range(frames // tubelet):
        row = []
        for i in range(0, height - p + 1, step):
            for j in range(0, width - p + 1, step):
                cube = x[:, t * tubelet : (t + 1) * tubelet, i : i + p, j : j + p]
                row.append([float(np.sum(kernel[c] * cube)) + bias[c] for c in range(len(bias))])
        out.append(row)
    return np.array(out)


def clip_tokens(x: Array, w: Weights, p: int, tubelet: int) -> Array:
    """CLS and patch tokens [1 + t·s, C] with all positions, of VideoMamba's video families."""
    tokens = patches_of_clip(x, w, p, tubelet)
    out = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for t in range(tokens.shape[0]):
        for s in range(tokens.shape[1]):
            out.append(tokens[t, s] + w["pos_embed"][0, 1 + s] + w["temporal_pos_embedding"][0, t])
    return np.array(out)


def contract(x: Array, w: Weights, depth: int, p: int, tubelet: int) -> Array:
    """Normed tokens [1 + t·s, C] of the causal class."""
    tokens = layers(clip_tokens(x, w, p, tubelet), w, depth, "forward")
    return np.stack([rms_norm(row, w["norm.weight"]) for row in tokens])


def video_tokens(x: Array, w: Weights, depth: int, p: int, tubelet: int) -> Array:
    """Normed tokens of the video families."""
    tokens = layers(clip_tokens(x, w, p, tubelet), w, depth, "sum")
    return np.stack([rms_norm(row, w["norm_f.weight"]) for row in tokens])


def video(x: Array, w: Weights, depth: int, p: int, tubelet: int) -> tuple[Array, Array]:
    """Normed tokens and class scores of the video family."""
    normed = video_tokens(x, w, depth, p, tubelet)
    return normed, w["head.weight"] @ normed[0] + w["head.bias"]


def retrieval(x: Array, w: Weights, depth: int, p: int, tubelet: int) -> Array:
    """Pooled features of the video-text family: CLS + mean patch, normed."""
    normed = video_tokens(x, w, depth, p, tubelet)
    return layer_norm(normed[0] + normed[1:].mean(0), w["pool_norm.weight"], w["pool_norm.bias"])


def masked(x: Array, w: Weights, depth: int, p: int, tubelet: int, visible: list[int]) -> tuple[Array, Array]:
    """Features (no norm, last layer left out) and CLIP-space features of the visible tokens."""
    tokens = clip_tokens(x, w, p, tubelet)
    features = layers(tokens[visible], w, depth - 1, "sum")
    dim, decoded = tokens.shape[1], []
    for row, position in zip(features, visible, strict=True):
        angles = [position / 10000 ** (2 * (c // 2) / dim) for c in range(dim)]
        table = np.array([np.sin(a) if c % 2 == 0 else np.cos(a) for c, a in enumerate(angles)])
        v = w["clip_decoder.0.head.weight"] @ (row + table) + w["clip_decoder.0.head.bias"]
        v = layer_norm(v, w["clip_decoder.0.norm.weight"], w["clip_decoder.0.norm.bias"])
        decoded.append(v / sqrt(float(v @ v)))
    return features, np.array(decoded)


def image(x: Array, w: Weights, depth: int, p: int) -> tuple[Array, Array]:
    """Normed tokens and class scores of the image family; x is [3, H, W]."""
    w = {**w, "patch_embed.proj.weight": w["patch_embed.proj.weight"][:, :, None]}
    tokens = patches_of_clip(x[:, None], w, p, 1)[0]
    tokens = np.concatenate([w["cls_token"][0], tokens]) + w["pos_embed"][0]
    tokens = layers(tokens, w, depth, "sum")
    normed = np.stack([rms_norm(row, w["norm_f.weight"]) for row in tokens])
    return normed, w["head.weight"] @ normed[0] + w["head.bias"]


def distilled(normed: Array, w: Weights) -> Array:
    """Features for the teacher of a distilled student's normed tokens."""
    heads = [w["distill_head.1.weight"] @ rms_norm(row, w["distill_head.0.weight"]) for row in normed]
    return np.array([(v := head + w["distill_head.1.bias"]) / sqrt(float(v @ v)) for head in heads])


def vim(x: Array, w: Weights, depth: int, p: int, **options: object) -> tuple[Array, Array]:
    """Normed tokens and class scores of Vim; x is [3, H, W].

    options: cls ("middle", "tail", "both"), rope, pairs, stride, and directions ("mean", "v1", "forward", "poly").
    """
    grid = x.shape[1] // p, x.shape[2] // p
    w = {**w, "patch_embed.proj.weight": w["patch_embed.proj.weight"][:, :, None]}
    tokens = list(patches_of_clip(x[:, None], w, p, 1, options.get("stride"))[0])
    cls = options.get("cls", "middle")
    places = {"middle": [len(tokens) // 2], "tail": [len(tokens)], "both": [0, len(tokens) + 1]}[cls]
    names = ["cls_token_head", "cls_token_tail"] if cls == "both" else ["cls_token"]
    for place, name in zip(places, names, strict=True):
        tokens.insert(place, w[name][0, 0])
    branch, residual = np.array(tokens) + w["pos_embed"][0], None
    directions = options.get("directions", "mean")

    def layer(i: int, branch: Array, residual: Array | None) -> tuple[Array, Array]:
        residual = branch if residual is None else residual + branch
        normed = np.stack([rms_norm(row, w[f"layers.{i}.norm.weight"]) for row in residual])
        return mixer(normed, w, f"layers.{i}.", directions), residual

    for i in range(0, depth, 2 if options.get("pairs") else 1):
        if options.get("rope"):
            branch = rotate(branch, grid)
        if options.get("pairs"):
            one, stream = layer(i, branch, residual)
            other, back = layer(i + 1, branch[::-1], None if residual is None else residual[::-1])
            branch, residual = one + other[::-1], stream + back[::-1]
        else:
            branch, residual = layer(i, branch, residual)
    normed = np.stack([rms_norm(row, w["norm_f.weight"]) for row in residual + branch])
    pooled = sum(normed[place] for place in places) / len(places)
    return normed, w["head.weight"] @ pooled + w["head.bias"]


def rotate(tokens: Array, grid: tuple[int, int], trained: int = 14) -> Array:
    """Turn the channel pairs of every token but the first by its row (first half) and column (second half)."""
    out, dim = tokens.copy(), tokens.shape[1]
    for index in range(1, len(tokens)):
        patch = index - 1
        for pair in range(dim // 2):
            row, column = patch // grid[1] / grid[0] * trained, patch % grid[1] / grid[1] * trained
            angle = (row if pair < dim // 4 else column) * 10000 ** (-2 * (pair % (dim // 4)) / (dim // 2))
            a, b = tokens[index, 2 * pair], tokens[index, 2 * pair + 1]
            out[index, 2 * pair] = a * np.cos(angle) - b * np.sin(angle)
            out[index, 2 * pair + 1] = b * np.cos(angle) + a * np.sin(angle)
    return out


def refiner(x: Array, w: Weights, per_frame: int = 1) -> Array:
    """The refinement block on tokens [L, C], `per_frame` of them to a frame; the backward way reverses the frames."""
    frames = range(len(x) // per_frame)
    order = [frame * per_frame + token for frame in reversed(frames) for token in range(per_frame)]

    def one_way(rows: Array, name: str) -> Array:
        normed = np.stack([rms_norm(row, w[f"{name}.norm.weight"]) for row in rows])
        return mixer(normed, w, f"{name}.", "forward")

    fwd, bwd = one_way(x, "block_fwd"), one_way(x[order], "block_bwd")[order]
    out = []
    for a, b in zip(fwd, bwd, strict=True):
        logits = w["fusion_gate.0.weight"] @ np.concatenate([a, b]) + w["fusion_gate.0.bias"]
        gate = np.array([sigmoid(v) for v in logits])
        out.append(w["out_proj.weight"] @ (gate * a + (1 - gate) * b) + w["out_proj.bias"])
    return np.array(out)
