"""Watermarking methods: one frozen dataclass per file, file name = yaml name = class in CamelCase."""
