"""Stream a video through an exported student: needs onnxruntime, numpy, OpenCV and Pillow, nothing of this project.

python examples/run_onnx.py depth.onnx clip.mp4 depth.mp4
"""

import json
import sys
from math import prod

import cv2
import numpy as np
import onnxruntime
from PIL import Image


def fit(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring uint8 [H, W, 3] to float32 [1, 3, height, width] in [0, 1]: cubic, antialiased where it shrinks."""
    if height < rgb.shape[0] or width < rgb.shape[1]:
        cubic = Image.Resampling.BICUBIC  # rows in whole levels, then columns
        rows = np.asarray(Image.fromarray(rgb).resize((width, rgb.shape[0]), cubic), np.float32)
        planes = [Image.fromarray(rows[..., i]).resize((width, height), cubic) for i in range(3)]
        return np.clip(planes, 0, 255)[None] / np.float32(255)
    enlarged = cv2.resize(rgb.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(enlarged.transpose(2, 0, 1)[None]) / 255


def main(model_path: str, video_path: str, out_path: str) -> None:
    session = onnxruntime.InferenceSession(model_path)
    about = session.get_modelmeta().custom_metadata_map
    capture = cv2.VideoCapture(video_path)
    fps, patch = capture.get(cv2.CAP_PROP_FPS), int(about["patch_size"])
    width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    scale = 266 / min(height, width)  # px of the short side that the model sees
    H, W = json.loads(about["image_size"]) or [round(side * scale / patch) * patch for side in (height, width)]

    # A dimension is a number, or a product of ⌈side · numerator / denominator⌉. Zeros start a stream.
    sides, types = {"H": H, "W": W}, {i.name: i.type for i in session.get_inputs()}
    feeds = {}
    for name, shape in json.loads(about["state_shapes"]).items():
        dims = [d if isinstance(d, int) else prod(-(-sides[a] * n // m) for a, n, m in d) for d in shape]
        feeds[name] = np.zeros(dims, np.int64 if types[name] == "tensor(int64)" else np.float32)
    state_names = list(feeds)

    writer = cv2.VideoWriter(out_path, cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    while (read := capture.read())[0]:
        feeds["rgb"] = fit(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), H, W)
        depth, *state = session.run(None, feeds)
        feeds.update(zip(state_names, state, strict=True))
        low, high = np.percentile(depth, (2, 98))
        gray = np.clip((depth[0, 0] - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        writer.write(cv2.resize(cv2.applyColorMap(gray, cv2.COLORMAP_INFERNO), (width, height)))
    writer.release()


if __name__ == "__main__":
    main(*sys.argv[1:4])
