"""The formats that the core itself reads and writes: the Hugging Face safetensors directory."""
