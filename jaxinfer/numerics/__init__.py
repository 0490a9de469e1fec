"""Arrays to arrays, knowing no model: quantization, masks, calibration and folding."""
