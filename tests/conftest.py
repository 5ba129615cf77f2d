"""Settings of all tests."""

import torch

torch.set_num_threads(1)  # on small tensors more threads only wait for each other
