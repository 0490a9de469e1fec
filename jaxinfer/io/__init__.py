"""Files: weights (safetensors, npz) read leaf by leaf, and model directories written whole."""
