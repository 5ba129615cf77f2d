"""A trained detector as one ONNX graph: from the image to boxes, scores, labels and masks."""
