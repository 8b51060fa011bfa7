"""The parts of which the modeling file of an exported model is made; they import torch, transformers and each other."""
