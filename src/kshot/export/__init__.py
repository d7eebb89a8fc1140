"""Saved models as files that run without kshot: ONNX or a program of torch.export, and a runner of one file."""
