"""Editors and edits as files: artifacts, model cards, LoRA adapters, merged checkpoints."""
