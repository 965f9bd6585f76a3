//! Causal convolution in time and the MAGVIT-v2 video tokenizer.
