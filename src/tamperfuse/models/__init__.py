"""Models: loading and saving, bundled ones, the chat template, packed forward passes, the sentence encoder."""
