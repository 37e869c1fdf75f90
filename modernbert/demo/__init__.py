"""The demo: pretrain and fine-tune a small model on text found on this machine."""
