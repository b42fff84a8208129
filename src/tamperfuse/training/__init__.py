"""Fine-tuning: `fit` and its training loop, objectives, batches, adapters, checkpoints, and weight-space tools."""
