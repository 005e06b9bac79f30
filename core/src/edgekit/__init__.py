"""edgekit: put trained models on edge devices, and prove the result right."""
