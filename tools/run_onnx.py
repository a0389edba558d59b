"""Run a file of tools/export.py with only onnxruntime, numpy and Pillow: python run_onnx.py detector.onnx street.jpg"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def detect(session, image, threshold=0.5):
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    if "size" in about:  # this file takes one size only
        height, width = about["size"]
    else:
        scale = min(about["short_side"] / min(image.size), about["max_size"] / max(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    values = ((pixels / 255 - about["mean"]) / about["std"]).astype(np.float32).transpose(2, 0, 1)[None]
    inputs = {"pixel_values": values, "mask": np.zeros((1, height, width), dtype=bool)}
    inputs = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    boxes, scores, labels = (output[0] for output in session.run(["boxes", "scores", "labels"], inputs))
    boxes = boxes * (image.size * 2)  # fractions -> pixels
    return [(about["names"].get(str(k)), s, b) for b, s, k in zip(boxes, scores, labels) if s >= threshold]  # noqa: B905


if __name__ == "__main__":
    for name, score, box in detect(
        onnxruntime.InferenceSession(sys.argv[1]), Image.open(sys.argv[2], formats=("JPEG", "PNG", "WEBP"))
    ):
        print(name, round(float(score), 3), np.round(box, 1).tolist())
