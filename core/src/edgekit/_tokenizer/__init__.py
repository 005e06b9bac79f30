"""What `edgekit.tokenizer` stands on: pre-tokenizers by name, tokenizer.json, and the files of a directory."""
