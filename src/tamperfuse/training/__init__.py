"""Fine-tuning: batches, steps (what a batch's backward pass is), and `fit`, which owns the loop."""
